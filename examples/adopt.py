"""A state that another program wrote: load it, look at it, adopt it. Its keys all survive.

A file without ``_meta`` is revision 0. The first save gives it a revision and a checksum, and keeps
the original as ``.bak``. Stop the other program first: it would not know about either.
"""

import sys

from statestore import StateStore, TradingSession

store = StateStore(sys.argv[1])
state = store.load(missing_ok=False)
print(f"revision {state.meta.revision}: {', '.join(state)}")
original = store.backup("before adoption")
with TradingSession(store):
    pass
print(f"revision {store.revision}; the original is {original}")
