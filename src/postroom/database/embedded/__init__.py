"""The PostgreSQL that postroom brings along, for when POSTROOM_DATABASE_URL names none."""
