-- The state: its revisions, which of them is the present one, the lease of the bot that runs on it,
-- and its kill switch.
--
-- `document` is the file of that revision, byte for byte (disk/codec.py), checksum included: bytes
-- keep every digit of every number and the order of the keys, which json and jsonb do not promise.

CREATE TABLE revisions (
    name        text NOT NULL,
    revision    bigint NOT NULL CHECK (revision > 0),
    sha256      text NOT NULL,
    saved_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    document    bytea NOT NULL,
    PRIMARY KEY (name, revision)
);

-- Which revision is the present one; NULL while the first one is on its way. A save compares both
-- columns and swaps them, in the statement that adds the revision.
CREATE TABLE states (
    name        text PRIMARY KEY,
    revision    bigint,
    sha256      text,
    FOREIGN KEY (name, revision) REFERENCES revisions (name, revision),
    CHECK ((revision IS NULL) = (sha256 IS NULL))
);
ALTER TABLE revisions ADD FOREIGN KEY (name) REFERENCES states (name);

-- Who runs. The lease itself is an advisory lock, held by the connection `backend`; this row says
-- whose that is, and when it was last heard of.
CREATE TABLE leases (
    name        text PRIMARY KEY,
    pid         integer NOT NULL,
    host        text NOT NULL,
    since       timestamptz NOT NULL,
    beat        timestamptz NOT NULL,
    backend     integer NOT NULL
);

-- A row here halts every bot on that state.
CREATE TABLE kill_switches (
    name        text PRIMARY KEY,
    reason      text NOT NULL,
    engaged_by  text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
