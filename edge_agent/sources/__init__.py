"""Where observations come from: one module for each kind of source, each a thread of its own at run time."""
