//! One ssh session with one guest.
