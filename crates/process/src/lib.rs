//! Child processes, each in its own process group.
