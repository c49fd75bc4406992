//! A machine that is nobody's yet.

use std::sync::Arc;
use std::time::Duration;

use protocol::command::{Mode, Name};
use tokio::time::Instant;
use tracing::error;

use super::Order;
use super::board::{Occupant, SlotState};
use super::machine::{Facts, How, Login, Machine, Shape};
use super::network::Membership;
use super::slots::Lease;
use crate::config::Image;

/// A machine whose guest answers and that no builder has. Dropped, it is killed and its slot is given back.
#[derive(Debug)]
pub(super) struct Raised {
    pub how: How,
    pub image_name: Name,
    pub image: Arc<Image>,
    pub mode: Mode,
    /// The generation of the image that its disk was made on.
    pub generation: u32,
    pub login: Login,
    pub vm: qemu::Vm,
    pub lease: Lease,
    /// Its place in a builder's private network, which only a machine that was made for the builder has.
    pub membership: Option<Membership>,
}

impl Raised {
    /// Gives it to a builder, who asked for it at some moment and may have it so long. Those in its private network do not
    /// know it yet.
    pub(super) fn given_to(self, order: &Order, asked: Instant, time_to_live: Duration) -> Arc<Machine> {
        let slot = self.lease.slot();
        // One that was not made for the order is as its image says, and so is the order then.
        let shape = Shape::of(order, &self.image);
        let facts = Facts {
            build: order.build,
            bind: order.bind,
            slot: slot.number(),
            ssh_port: slot.ssh_port(),
            pid: self.vm.pid(),
            image_name: self.image_name,
            mode: self.mode,
            cpus: shape.cpus,
            memory_mib: shape.memory_mib,
            generation: self.generation,
            how: self.how,
            network: self.membership.as_ref().map(|place| (place.network().clone(), place.address())),
            took: asked.elapsed(),
            owner: order.owner.clone(),
        };
        let (how, console) = (self.how, slot.console_log());
        let notice = self.lease.notice();
        notice.occupied_by(Occupant {
            generation: Some(facts.generation),
            how: Some(facts.how),
            ..Occupant::ordered(order)
        });
        notice.is(SlotState::Up);
        let machine = Machine::new(facts, self.image, self.login, self.vm, self.lease, self.membership, time_to_live);
        if how == How::Warm {
            // What it printed while it was nobody's concerns no build.
            machine.set_console_shown(std::fs::metadata(console).map_or(0, |console| console.len()));
        }
        Arc::new(machine)
    }

    /// Ends it at once, and gives its slot back.
    pub(super) async fn end(self) {
        if let Err(stuck) = self.vm.shutdown(qemu::Shutdown::from(qemu::Rung::Quit)).await {
            error!(slot = self.lease.slot().number(), "{stuck}");
        }
    }
}
