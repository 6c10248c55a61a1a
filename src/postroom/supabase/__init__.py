"""What a Supabase project gets: migrations for `supabase db push`, functions that hand over to postroom."""
