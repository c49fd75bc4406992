//! Everything against real servers: OpenSSH's sshd and dropbear, on loopback, one process per connection; and against one of
//! the test's own that does what no honest server would.

mod commands;
mod connecting;
mod copies;
mod hostile;
mod narrow;
mod server;
