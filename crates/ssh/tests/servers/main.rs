//! Everything against real servers: OpenSSH's sshd and dropbear, on loopback, one process per connection.

mod commands;
mod connecting;
mod copies;
mod narrow;
mod server;
