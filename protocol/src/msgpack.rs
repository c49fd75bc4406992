//! The codec of `msgpack_experimental_v7` (Buildbot 4.3.0): each WebSocket message is one map.
