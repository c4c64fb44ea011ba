-- The state: one row for the present, one for each revision that is kept, one lease, one kill switch.
--
-- `document` is the file of the same revision, byte for byte (disk/codec.py), checksum included;
-- text keeps every digit of every number, which jsonb does not promise for its layout.

CREATE TABLE states (
    name        text PRIMARY KEY,
    revision    bigint NOT NULL CHECK (revision >= 0),
    document    bytea NOT NULL,
    sha256      text NOT NULL,
    saved_at    timestamptz NOT NULL
);
