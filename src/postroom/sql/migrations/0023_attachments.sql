-- The files that go with an e-mail, as Resend's API has them: [{"filename": …, "content": base64, "content_type"?, "content_id"?}].
-- A column of this name that is there already keeps its type, whatever it is, and its storage (docs/decisions/0031). Ours is not
-- compressed: files hardly shrink, and so their size is known unread, by which a worker's memory is bounded.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT 1
        FROM pg_catalog.pg_attribute AS known
        WHERE known.attrelid = 'public.email_queue'::regclass AND known.attname = 'attachments' AND NOT known.attisdropped
    ) THEN
        ALTER TABLE public.email_queue ADD COLUMN attachments jsonb;
        ALTER TABLE public.email_queue ALTER COLUMN attachments SET STORAGE EXTERNAL;
    END IF;
END;
$$;
