//! Private networks: the machines of a build that see each other, and their addresses and names.
//!
//! A network lives as long as it has members. Each has an address, by order of joining, that no other member gets while
//! the network lives, and knows all others by the names that the builder gave to their VMs.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, anyhow};
use futures_util::future::join_all;
use protocol::command::Name;

use super::guest_command;
use super::machine::{Machine, Status};
use crate::config::Profile;

/// The addresses of every private network: 10.77.0.1 to 10.77.0.254.
const PREFIX: u8 = 24;
const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// All private networks that have members.
#[derive(Debug, Default)]
pub(super) struct Networks(Mutex<HashMap<Key, Weak<Network>>>);

/// The builder, its build, and what that calls the network. A machine of the build before may take a while to shut down.
type Key = (String, Option<u64>, Name);

#[derive(Debug)]
struct Network {
    name: Name,
    lan: qemu::Lan,
    /// Held while names are told, so that nobody is told an older table last.
    members: tokio::sync::Mutex<Vec<Weak<Machine>>>,
}

/// A machine's place in a network. Dropped, it is off the network.
#[derive(Debug)]
pub(super) struct Membership {
    network: Arc<Network>,
    port: qemu::Port,
}

impl Networks {
    /// Takes a place in a build's network of this name, which is made if there is none.
    pub(super) fn join(
        &self,
        builder: &str,
        build: Option<u64>,
        name: &Name,
    ) -> anyhow::Result<(Membership, qemu::Cable)> {
        let network = {
            let mut networks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            networks.retain(|_, network| network.strong_count() > 0);
            let key = (builder.to_owned(), build, name.clone());
            networks.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let network = Network { name: name.clone(), lan: qemu::Lan::new(), members: Default::default() };
                let network = Arc::new(network);
                networks.insert(key, Arc::downgrade(&network));
                network
            })
        };
        let (port, cable) = network.lan.join().with_context(|| format!("join network '{name}'"))?;
        Ok((Membership { network, port }, cable))
    }
}

impl Membership {
    /// The network's name.
    pub(super) fn network(&self) -> &Name {
        &self.network.name
    }

    /// The machine's address in it.
    pub(super) fn address(&self) -> Ipv4Addr {
        address(self.port.number())
    }

    /// Gives the guest's card its address.
    pub(super) async fn set_address(&self, session: &ssh::Session, profile: &Profile) -> anyhow::Result<()> {
        let (mac, address, prefix) = (self.port.mac().to_string(), self.address().to_string(), PREFIX.to_string());
        let words = [("mac", &*mac), ("address", &*address), ("prefix", &*prefix)];
        let doing = || format!("configure network '{}'", self.network.name);
        let command = profile.fill(&profile.network, &words).ok_or_else(|| lacking(profile, "network"));
        guest_command::run(session, &command.with_context(doing)?).await.with_context(doing)?;
        Ok(())
    }

    /// Makes a machine, whose membership this is, known to all members by name, and them to it. A second call, after its
    /// guest restarted, tells the same again.
    pub(super) async fn introduce(&self, machine: &Arc<Machine>) -> anyhow::Result<()> {
        let mut members = self.network.members.lock().await;
        members.retain(|member| {
            let there = |member: &Machine| member.status() == Status::Up && member.membership().is_some();
            member.upgrade().is_some_and(|member| there(&member) && !Arc::ptr_eq(&member, machine))
        });
        members.push(Arc::downgrade(machine));
        let members: Vec<_> = members.iter().filter_map(Weak::upgrade).collect();
        let table = table(&members);
        let told = members.iter().map(|member| async {
            match tell(member, &table).await {
                // One that is gone needs no names, and one that is logged in to anew is told them then.
                Err(_) if !Arc::ptr_eq(member, machine) && is_out_of_reach(member) => Ok(()),
                told => told,
            }
        });
        join_all(told).await.into_iter().collect()
    }
}

fn is_out_of_reach(machine: &Machine) -> bool {
    machine.status() != Status::Up || machine.login().session.is_lost()
}

/// The lines of a hosts file for these machines.
fn table(members: &[Arc<Machine>]) -> String {
    members.iter().fold(String::new(), |mut table, member| {
        if let Some(address) = member.facts.address() {
            let _ = writeln!(table, "{address} {}", member.facts.owner.vm);
        }
        table
    })
}

async fn tell(machine: &Machine, table: &str) -> anyhow::Result<()> {
    let (vm, profile) = (&machine.facts.owner.vm, &machine.image.profile);
    let doing = || format!("tell vm '{vm}' the names in its network");
    let command = profile.fill(&profile.hosts, &[("hosts", table.trim_end())]);
    let command = command.ok_or_else(|| lacking(profile, "hosts")).with_context(doing)?;
    guest_command::run(&machine.login().session, &command).await.with_context(doing)?;
    Ok(())
}

fn lacking(profile: &Profile, key: &str) -> anyhow::Error {
    anyhow!("profile '{}' has no {key} command; set profiles.{}.{key}", profile.name, profile.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn members_are_numbered_for_each_build_and_name_while_there_are_any() {
        let networks = Networks::default();
        let [net, other] = ["net", "other"].map(|name| Name::new(name).unwrap());
        let join = |builder: &str, build, name: &Name| networks.join(builder, Some(build), name).unwrap().0;
        let check = |membership: &Membership, expected: &str| {
            assert_eq!(membership.address().to_string(), expected);
        };
        let first = join("b", 1, &net);
        let second = join("b", 1, &net);
        check(&first, "10.77.0.1");
        check(&second, "10.77.0.2");
        check(&join("b", 1, &other), "10.77.0.1");
        check(&join("c", 1, &net), "10.77.0.1");
        // The build before is still shutting down.
        check(&join("b", 2, &net), "10.77.0.1");
        drop(first);
        let third = join("b", 1, &net);
        check(&third, "10.77.0.3");
        assert_eq!(third.network(), &net);
        drop((second, third));
        check(&join("b", 1, &net), "10.77.0.1");
        // What is over leaves nothing behind.
        assert_eq!(networks.0.lock().unwrap().len(), 1);
    }
}
