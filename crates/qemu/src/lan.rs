//! A private Ethernet between machines.
//!
//! ```text
//!   QEMU ──Cable── socket pair ──▶ Port ──▶ the Port that the frame is for, or all others ──▶ QEMU
//! ```
//!
//! One datagram is one frame (`-netdev dgram`, QEMU 7.2 and later), so that there is nothing to take apart of what a QEMU
//! sends. There is no port of the host, no multicast and no file that another process could reach.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixDatagram;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// The most members a network can have had. Their numbers begin at 1.
pub const MAX_MEMBERS: u8 = 254;

/// The longest frame that is carried, in bytes: more than a guest makes, whose cards know no larger ones than Ethernet's
/// own. What is longer is dropped.
pub const MAX_FRAME: usize = 65_536 + 14;

/// The header of an Ethernet frame: receiver, sender, type. What is shorter is dropped.
const MIN_FRAME: usize = 14;

/// How many frames may wait for one member before further ones to it are dropped, as a switch does.
const QUEUE: usize = 256;

/// An Ethernet that the machines on it share with nobody. Cheap to clone. It forwards frames while it has members.
#[derive(Clone, Default)]
pub struct Lan {
    members: Arc<Members>,
}

/// A member's place on a [`Lan`], and the owner of the task that carries its frames. Dropped, it is off the network.
#[derive(Debug)]
pub struct Port {
    lan: Lan,
    number: u8,
    mac: Mac,
    task: AbortHandle,
}

/// The other end of a [`Port`], for a machine to be started with: see [`Vm::start_on`](crate::Vm::start_on).
#[derive(Debug)]
pub struct Cable {
    pub(crate) socket: OwnedFd,
    mac: Mac,
}

/// The address of a network card.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

#[derive(Default)]
struct Members(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// The number given last.
    last: u8,
    members: BTreeMap<u8, Member>,
}

struct Member {
    mac: Mac,
    frames: mpsc::Sender<Frame>,
}

type Frame = Arc<[u8]>;

impl Lan {
    /// Makes a network without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a member. Must be called in the context of a tokio runtime with IO.
    ///
    /// # Errors
    /// If the network has had [`MAX_MEMBERS`] already, whose numbers are not given again, or the system has no socket
    /// left.
    pub fn join(&self) -> io::Result<(Port, Cable)> {
        let (ours, theirs) = UnixDatagram::pair()?;
        let theirs = theirs.into_std()?;
        let (frames, waiting) = mpsc::channel(QUEUE);
        let (number, mac) = {
            let mut table = self.members.lock();
            let number = table.last.checked_add(1).filter(|number| *number <= MAX_MEMBERS);
            let number = number.ok_or_else(|| {
                io::Error::new(io::ErrorKind::QuotaExceeded, format!("it has had {MAX_MEMBERS} members, no more fit"))
            })?;
            table.last = number;
            let mac = Mac::of_member(number);
            table.members.insert(number, Member { mac, frames });
            (number, mac)
        };
        let task = tokio::spawn(carry(ours, waiting, self.clone(), number)).abort_handle();
        Ok((Port { lan: self.clone(), number, mac, task }, Cable { socket: theirs.into(), mac }))
    }

    /// Passes on a frame that a member sent.
    fn forward(&self, from: u8, frame: &[u8]) {
        let Some(to) = frame.first_chunk().copied().map(Mac) else { return };
        let table = self.members.lock();
        let known = table.members.iter().find(|(_, member)| member.mac == to);
        let frame = Frame::from(frame);
        // A card that a guest made up itself, such as a container's, is behind any of them.
        let receivers = table.members.iter().filter(|(number, member)| match known {
            Some((to, _)) => *number == to && to != &from,
            None => **number != from && !member.frames.is_closed(),
        });
        for (_, member) in receivers {
            // One that is full, or gone, misses it.
            let _ = member.frames.try_send(Arc::clone(&frame));
        }
    }
}

impl Members {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Carries a member's frames, until its QEMU is gone or the port is dropped.
async fn carry(socket: UnixDatagram, mut waiting: mpsc::Receiver<Frame>, lan: Lan, number: u8) {
    let from_guest = async {
        // One byte more than may be, so that what is cut off can be told from what fits.
        let mut buffer = vec![0; MAX_FRAME + 1];
        while let Ok(length) = socket.recv(&mut buffer).await {
            if (MIN_FRAME..=MAX_FRAME).contains(&length) {
                lan.forward(number, &buffer[..length]);
            }
        }
    };
    let to_guest = async {
        while let Some(frame) = waiting.recv().await {
            match socket.send(&frame).await {
                Err(error) if is_the_end(&error) => return,
                // What the system would not take, such as for want of memory, is lost as frames may be.
                _ => {}
            }
        }
    };
    tokio::select! {
        () = from_guest => {}
        () = to_guest => {}
    }
}

/// Whether nobody has the other end any more.
fn is_the_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected)
}

impl Port {
    /// Returns the member's number: 1 for the first, and no other member's while the network lives.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Returns the address of the member's card.
    pub fn mac(&self) -> Mac {
        self.mac
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
        self.lan.members.lock().members.remove(&self.number);
    }
}

impl Cable {
    /// Describes the card that is on it.
    pub fn card(&self) -> Card {
        Card { fd: self.socket.as_raw_fd(), mac: self.mac }
    }

    /// Returns the cable's end, on which a datagram is a frame, for somebody else than a machine.
    pub fn into_socket(self) -> std::os::unix::net::UnixDatagram {
        self.socket.into()
    }
}

/// A machine's card on a [`Lan`], as QEMU's arguments name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// The number QEMU inherits the cable's end under.
    pub fd: RawFd,
    /// The card's address.
    pub mac: Mac,
}

impl Mac {
    /// A locally administered address (the second bit of the first byte) of an ordinary card (not the first bit).
    pub(crate) fn of_member(number: u8) -> Self {
        Mac([0x02, b'k', b'v', b'm', 0, number])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

impl fmt::Debug for Lan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.members.lock().members.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const BROADCAST: Mac = Mac([0xff; 6]);

    /// What stands for a QEMU on the network.
    struct Guest {
        port: Port,
        socket: UnixDatagram,
    }

    impl Guest {
        fn on(lan: &Lan) -> Self {
            let (port, cable) = lan.join().expect("it joins");
            let socket = UnixDatagram::from_std(cable.into_socket()).expect("a socket");
            Guest { port, socket }
        }

        async fn send(&self, to: Mac, text: &str) {
            self.send_bytes(&frame(to, text)).await;
        }

        async fn send_bytes(&self, bytes: &[u8]) {
            timeout(Duration::from_secs(10), self.socket.send(bytes)).await.expect("in time").expect("it is sent");
        }

        /// Checks which frames come next.
        async fn gets(&self, expected: &[Vec<u8>]) {
            let mut buffer = vec![0; MAX_FRAME * 2];
            for expected in expected {
                let received = timeout(Duration::from_secs(10), self.socket.recv(&mut buffer)).await;
                let length = received.expect("a frame comes in time").expect("it is received");
                assert_eq!(&buffer[..length], expected);
            }
        }
    }

    fn frame(to: Mac, text: &str) -> Vec<u8> {
        [&to.0, [2, 0, 0, 0, 0, 9, 8, 0].as_slice(), text.as_bytes()].concat()
    }

    #[tokio::test]
    async fn a_frame_reaches_the_one_it_is_for_or_else_all_others() {
        let lan = Lan::new();
        let [a, b, c] = [Guest::on(&lan), Guest::on(&lan), Guest::on(&lan)];
        let unknown = Mac([2, 0, 0, 0, 0, 7]);
        a.send(b.port.mac(), "for b").await;
        a.send(a.port.mac(), "for itself").await;
        a.send(BROADCAST, "for all").await;
        a.send(unknown, "for somebody").await;
        let for_others = [frame(BROADCAST, "for all"), frame(unknown, "for somebody")];
        c.gets(&for_others).await;
        b.gets(&[frame(b.port.mac(), "for b")]).await;
        b.gets(&for_others).await;
        // What a sends does not come back to it: the first it gets is this.
        b.send(BROADCAST, "from b").await;
        a.gets(&[frame(BROADCAST, "from b")]).await;
    }

    #[tokio::test]
    async fn networks_know_nothing_of_each_other() {
        let (one, other) = (Lan::new(), Lan::new());
        let [a, b] = [Guest::on(&one), Guest::on(&one)];
        let [c, d] = [Guest::on(&other), Guest::on(&other)];
        a.send(BROADCAST, "on one").await;
        b.gets(&[frame(BROADCAST, "on one")]).await;
        c.send(BROADCAST, "on the other").await;
        d.gets(&[frame(BROADCAST, "on the other")]).await;
    }

    #[tokio::test]
    async fn what_is_no_frame_is_dropped() {
        let lan = Lan::new();
        let [a, b] = [Guest::on(&lan), Guest::on(&lan)];
        let longest = frame(BROADCAST, &"x".repeat(MAX_FRAME - MIN_FRAME));
        a.send_bytes(&[0xff; MIN_FRAME - 1]).await;
        a.send_bytes(&[&longest[..], b"x"].concat()).await;
        a.send_bytes(b"").await;
        a.send_bytes(&longest).await;
        b.gets(&[longest]).await;
    }

    #[tokio::test]
    async fn a_member_that_does_not_read_holds_nobody_up() {
        let lan = Lan::new();
        let [a, b, c] = [Guest::on(&lan), Guest::on(&lan), Guest::on(&lan)];
        for number in 0..4 * QUEUE {
            let text = number.to_string();
            a.send(BROADCAST, &text).await;
            b.gets(&[frame(BROADCAST, &text)]).await;
        }
        // It finds the oldest ones.
        c.gets(&(0..QUEUE).map(|number| frame(BROADCAST, &number.to_string())).collect::<Vec<_>>()).await;
    }

    #[tokio::test]
    async fn one_that_left_gets_nothing_and_its_number_is_not_given_again() {
        let lan = Lan::new();
        let [a, b, c] = [Guest::on(&lan), Guest::on(&lan), Guest::on(&lan)];
        let gone = b.port.mac();
        assert_eq!(gone.to_string(), "02:6b:76:6d:00:02");
        drop(b);
        a.send(gone, "to whoever has it").await;
        c.gets(&[frame(gone, "to whoever has it")]).await;
        assert_eq!(Guest::on(&lan).port.number(), 4);
        assert_eq!(format!("{lan:?}"), "{1, 3}");
    }

    #[tokio::test]
    async fn a_qemu_that_is_gone_does_not_disturb_the_others() {
        let lan = Lan::new();
        let [a, b, c] = [Guest::on(&lan), Guest::on(&lan), Guest::on(&lan)];
        let Guest { port: _port, socket } = b;
        drop(socket);
        for text in ["one", "two"] {
            a.send(BROADCAST, text).await;
            c.gets(&[frame(BROADCAST, text)]).await;
        }
    }

    #[tokio::test]
    async fn a_network_has_a_bounded_number_of_members() {
        let lan = Lan::new();
        for number in 1..=MAX_MEMBERS {
            assert_eq!(lan.join().expect("there is room").0.number(), number);
        }
        let error = lan.join().expect_err("it is full").to_string();
        assert_eq!(error, "it has had 254 members, no more fit");
    }
}
