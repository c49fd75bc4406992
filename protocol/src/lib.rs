//! The Buildbot wire protocols, as messages and codecs without IO.
