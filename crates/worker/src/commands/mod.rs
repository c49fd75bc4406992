//! The commands, each written once against [`crate::place::Place`].
