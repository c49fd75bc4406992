//! Slots and their queue, on real ports and directories.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::budget::{Limits, QEMU_MIB, Space};
use super::super::turn::Step;
use super::*;

/// The memory of a machine in these tests, with QEMU's, in MiB.
const MACHINE: u64 = 1024;

/// What a machine needs that is so many times as large.
fn need(times: u64) -> Need {
    Need::new(u32::try_from(MACHINE * times - QEMU_MIB).expect("it is small"), None)
}

/// A pool with so many slots, memory for so many machines, and a disk whose free space a test sets.
struct Scene {
    directory: tempfile::TempDir,
    slots: Slots,
    budget: Budget,
    base: u16,
    free_mib: Arc<AtomicU64>,
}

impl Scene {
    /// Has so many slots be there.
    async fn set(&self, count: u16) {
        let slots = (0..count).map(|number| Slot::new(number, self.base, self.directory.path()));
        self.slots.set(slots.collect()).await;
    }
}

async fn scene(count: u16, machines: u64) -> Scene {
    let directory = tempfile::tempdir().expect("a directory");
    let base = loop {
        // Others on this machine may have the next ones.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let base = listener.local_addr().expect("it has an address").port();
        drop(listener);
        if (0..count).all(|number| base.checked_add(number).is_some_and(|port| port_is_free(port).is_ok())) {
            break base;
        }
    };
    let free_mib = Arc::new(AtomicU64::new(1000));
    let shown = Arc::clone(&free_mib);
    let limits = Limits { memory_mib: Some(machines * MACHINE), low_water_mib: 100 };
    let budget = Budget::new(limits, move || Ok(Space { free_mib: shown.load(Ordering::Relaxed), total_mib: 10_000 }));
    let scene = Scene { slots: Slots::new(budget.clone(), &CoreTasks::new().0), budget, directory, base, free_mib };
    scene.set(count).await;
    scene
}

/// A pool in which only the slots are few.
async fn slots(count: u16) -> (tempfile::TempDir, Slots) {
    let Scene { directory, slots, .. } = scene(count, 100).await;
    (directory, slots)
}

fn census(slots: u16, free: u16) -> Census {
    Census { slots, free, beyond: slots, ..Census::default() }
}

impl Slots {
    /// Waits for a free slot, in the order of asking. Dropping the future gives up the place in the queue.
    async fn lease(&self, need: Need) -> Lease {
        let mut turn = self.queue(need).await;
        loop {
            if let Step::Leased(lease) = turn.next().await {
                return *lease;
            }
        }
    }
}

/// What one who waits is told next.
async fn told(turn: &mut Turn) -> String {
    match turn.next().await {
        Step::Leased(lease) => format!("slot {}", lease.slot()),
        Step::Waits(Wait::Slot { slots, .. }) => format!("all {slots} slots"),
        Step::Waits(Wait::Paused) => "paused".to_owned(),
        Step::Waits(Wait::Short(shortage)) => shortage.to_string(),
        Step::Waits(Wait::Turn { ahead, first }) => format!("{ahead} ahead, {first}"),
    }
}

#[tokio::test]
async fn slots_are_leased_lowest_first_and_come_back_clean() {
    let scene = scene(0, 100).await;
    let stale = scene.directory.path().join("0/overlay.qcow2");
    std::fs::create_dir_all(stale.parent().unwrap()).unwrap();
    std::fs::write(&stale, "left by an earlier run").unwrap();
    scene.set(2).await;
    let slots = &scene.slots;
    slots.settled().await;
    assert!(!stale.exists());
    let first = slots.lease(need(1)).await;
    let second = slots.lease(need(1)).await;
    assert_eq!((first.slot().number(), second.slot().number()), (0, 1));
    assert_eq!(slots.census(), census(2, 0));
    std::fs::create_dir_all(first.slot().directory()).unwrap();
    std::fs::write(first.slot().overlay(), "used").unwrap();
    drop(first);
    let again = slots.lease(need(1)).await;
    assert_eq!(again.slot().number(), 0);
    assert!(!again.slot().directory().exists());
}

#[tokio::test]
async fn those_who_wait_are_served_in_order_and_those_who_left_are_skipped() {
    let (_directory, slots) = slots(1).await;
    let first = slots.lease(need(1)).await;
    let mut left = Box::pin(slots.lease(need(1)));
    let mut next = Box::pin(slots.lease(need(1)));
    assert!(futures_util::poll!(&mut left).is_pending());
    assert!(futures_util::poll!(&mut next).is_pending());
    drop(left);
    drop(first);
    assert_eq!(next.await.slot().number(), 0);
}

#[tokio::test]
async fn nobody_is_served_in_a_pause_and_all_in_their_order_after_it() {
    let (_directory, slots) = slots(2).await;
    slots.settled().await;
    let leased = slots.lease(need(1)).await;
    slots.pause(true);
    let (mut first, mut second) = (slots.queue(need(1)).await, slots.queue(need(1)).await);
    assert_eq!((told(&mut first).await, told(&mut second).await), ("paused".to_owned(), "paused".to_owned()));
    assert!(slots.lease_at_once(need(1)).await.is_none());
    assert_eq!(slots.lack(None).await, Lack::default());
    // Who has one keeps it until it is given back, which serves nobody either.
    drop(leased);
    slots.changes().wait_for(|census| census.free == 2).await.expect("the slots are there");
    assert!(futures_util::poll!(Box::pin(first.next())).is_pending());
    slots.pause(false);
    assert_eq!((told(&mut first).await, told(&mut second).await), ("slot 0".to_owned(), "slot 1".to_owned()));
    assert_eq!(slots.census(), census(2, 0));
}

#[tokio::test]
async fn those_who_wait_for_a_slot_wait_for_the_end_of_a_pause_too() {
    let (_directory, slots) = slots(1).await;
    let first = slots.lease(need(1)).await;
    let mut next = slots.queue(need(1)).await;
    assert_eq!(told(&mut next).await, "all 1 slots");
    slots.pause(true);
    assert_eq!(told(&mut next).await, "paused");
    slots.pause(false);
    assert_eq!(told(&mut next).await, "all 1 slots");
    drop(first);
    assert_eq!(told(&mut next).await, "slot 0");
}

#[tokio::test]
async fn a_slot_that_cannot_be_cleaned_is_quarantined_and_tried_again() {
    let (directory, slots) = slots(2).await;
    slots.settled().await;
    let lease = slots.lease(need(1)).await;
    // A file where the slot's directory should be can't be removed as one.
    std::fs::write(lease.slot().directory(), "in the way").unwrap();
    drop(lease);
    slots.settled().await;
    let census = slots.census();
    assert_eq!((census.free, census.quarantined.len()), (1, 1), "{census:?}");
    let other = slots.lease(need(1)).await;
    assert_eq!(other.slot().number(), 1);
    std::fs::remove_file(directory.path().join("0")).unwrap();
    tokio::time::pause();
    assert_eq!(slots.lease(need(1)).await.slot().number(), 0);
}

#[tokio::test]
async fn a_slot_whose_port_is_taken_is_not_handed_out() {
    let (_directory, slots) = slots(2).await;
    slots.settled().await;
    let port = slots.lease(need(1)).await.slot().ssh_port();
    slots.settled().await;
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    assert_eq!(slots.lease(need(1)).await.slot().number(), 1);
    assert!(slots.census().quarantined[0].1.contains("pool.ssh_port_base"), "{:?}", slots.census());
}

#[tokio::test]
async fn a_machine_waits_until_others_give_its_memory_back() {
    let Scene { directory: _directory, slots, .. } = scene(4, 2).await;
    slots.settled().await;
    let (first, second) = (slots.lease(need(1)).await, slots.lease(need(1)).await);
    let mut third = slots.queue(need(1)).await;
    let short =
        |promised, machines| format!("memory: {promised} of 2048 MiB are promised to {machines}, this one needs 1024");
    assert_eq!(told(&mut third).await, short(2048, "2 machines"));
    let lack = Lack { slot: false, memory_mib: MACHINE, disk: false };
    assert_eq!(slots.census(), Census { waiting: 1, lack, ..census(4, 2) });
    drop(second);
    assert_eq!(told(&mut third).await, "slot 1");
    drop(first);
    slots.settled().await;
    assert_eq!(slots.census(), census(4, 4));
}

#[tokio::test]
async fn a_small_machine_does_not_overtake_a_large_one() {
    let Scene { directory: _directory, slots, .. } = scene(4, 3).await;
    slots.settled().await;
    let lease = slots.lease(need(1)).await;
    let mut large = slots.queue(need(3)).await;
    let mut small = slots.queue(need(1)).await;
    let short = "memory: 1024 of 3072 MiB are promised to 1 machine, this one needs 3072";
    assert_eq!(told(&mut large).await, short);
    assert_eq!(told(&mut small).await, format!("1 ahead, {short}"));
    assert!(slots.lease_at_once(need(1)).await.is_none(), "one that does not wait overtook those that do");
    drop(lease);
    let large = large.next().await;
    assert!(matches!(large, Step::Leased(_)), "{large:?}");
    assert_eq!(told(&mut small).await, "memory: 3072 of 3072 MiB are promised to 1 machine, this one needs 1024");
}

#[tokio::test]
async fn those_behind_one_who_leaves_are_served() {
    let Scene { directory: _directory, slots, .. } = scene(4, 2).await;
    slots.settled().await;
    let _lease = slots.lease(need(1)).await;
    let mut large = slots.queue(need(2)).await;
    told(&mut large).await;
    let mut small = slots.queue(need(1)).await;
    told(&mut small).await;
    drop(large);
    assert_eq!(told(&mut small).await, "slot 1");
}

#[tokio::test]
async fn leasing_pauses_while_the_disk_is_low() {
    let Scene { directory: _directory, slots, free_mib, .. } = scene(2, 2).await;
    slots.settled().await;
    free_mib.store(99, Ordering::Relaxed);
    tokio::time::pause();
    assert!(slots.lease_at_once(need(1)).await.is_none());
    let mut turn = slots.queue(need(1)).await;
    let low = "disk space: 99 MiB are free, and machines start with at least 100 (pool.disk_low_water_mib)";
    assert_eq!(told(&mut turn).await, low);
    let lack = Lack { slot: false, memory_mib: 0, disk: true };
    assert_eq!(slots.census(), Census { waiting: 1, lack, ..census(2, 2) });
    free_mib.store(100, Ordering::Relaxed);
    let asked = tokio::time::Instant::now();
    assert_eq!(told(&mut turn).await, "slot 0");
    assert!(asked.elapsed() < DISK_LOOK * 2, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_slot_at_once_is_there_or_not() {
    let (_directory, slots) = slots(1).await;
    slots.settled().await;
    let lease = slots.lease_at_once(need(1)).await.expect("a slot is free");
    assert!(slots.lease_at_once(need(1)).await.is_none());
    let mut turn = slots.queue(need(1)).await;
    assert_eq!(told(&mut turn).await, "all 1 slots");
    assert_eq!(slots.census().lack, Lack { slot: true, memory_mib: 0, disk: false });
    drop(lease);
    assert_eq!(told(&mut turn).await, "slot 0");
}

#[tokio::test]
async fn what_is_coming_back_is_not_lacking() {
    let Scene { directory: _directory, slots, .. } = scene(1, 1).await;
    let lease = slots.lease(need(1)).await;
    let mut turn = slots.queue(need(1)).await;
    told(&mut turn).await;
    assert_eq!(slots.lack(None).await, Lack { slot: true, memory_mib: MACHINE, disk: false });
    slots.leaving(&lease).await;
    assert_eq!(slots.lack(None).await, Lack::default());
    drop(lease);
    assert_eq!(slots.lack(None).await, Lack::default());
    assert_eq!(told(&mut turn).await, "slot 0");
}

#[tokio::test]
async fn what_was_said_of_a_slot_that_came_back_is_forgotten() {
    let (_directory, slots) = slots(1).await;
    let lease = slots.lease(need(1)).await;
    let slot = lease.slot().clone();
    drop(lease);
    slots.settled().await;
    // The words of one who gave it back may be heard after the slot was.
    let _ = slots.wanted.send(Want::Leaving { slot, memory_mib: MACHINE }).await;
    assert_eq!(slots.lack(None).await, Lack::default());
    assert_eq!(slots.census(), census(1, 1));
}

#[tokio::test]
async fn one_with_a_slot_of_its_own_lacks_memory_alone_and_comes_after_those_who_wait() {
    let Scene { directory: _directory, slots, .. } = scene(1, 2).await;
    let lease = slots.lease(need(1)).await;
    let memory = |memory_mib| Lack { memory_mib, ..Lack::default() };
    assert_eq!(slots.lack(Some(need(1))).await, Lack::default());
    assert_eq!(slots.lack(Some(need(2))).await, memory(MACHINE));
    let mut turn = slots.queue(need(1)).await;
    assert_eq!(told(&mut turn).await, "all 1 slots");
    assert_eq!(slots.lack(Some(need(2))).await, Lack { slot: true, ..Lack::default() });
    drop(turn);
    slots.leaving(&lease).await;
    assert_eq!(slots.lack(Some(need(2))).await, Lack::default());
}

#[tokio::test]
async fn a_slot_that_is_added_serves_one_who_waits() {
    let scene = scene(1, 100).await;
    let _lease = scene.slots.lease(need(1)).await;
    let mut turn = scene.slots.queue(need(1)).await;
    assert_eq!(told(&mut turn).await, "all 1 slots");
    // Like at the start, what is in there is dealt with before.
    let stale = scene.directory.path().join("1/overlay.qcow2");
    std::fs::create_dir_all(stale.parent().unwrap()).unwrap();
    std::fs::write(&stale, "left by an earlier run").unwrap();
    scene.set(2).await;
    assert_eq!(scene.slots.census().slots, 2);
    loop {
        match turn.next().await {
            Step::Leased(lease) => break assert_eq!((lease.slot().number(), stale.exists()), (1, false)),
            Step::Waits(wait) => assert_eq!(wait, Wait::Slot { slots: 2, quarantined: Vec::new() }),
        }
    }
}

#[tokio::test]
async fn slots_that_are_too_many_go_when_no_machine_is_in_them() {
    let scene = scene(4, 100).await;
    let slots = &scene.slots;
    slots.settled().await;
    let leases = [slots.lease(need(1)).await, slots.lease(need(1)).await, slots.lease(need(1)).await];
    scene.set(1).await;
    assert_eq!(slots.census(), Census { retired: 2, beyond: 3, ..census(1, 0) });
    let leaving = || slots.board().slots().into_iter().map(|(slot, note)| (slot, note.leaving)).collect::<Vec<_>>();
    assert_eq!(leaving(), [(0, false), (1, true), (2, true)]);
    let [first, second, third] = leases;
    drop(second);
    let mut turn = slots.queue(need(1)).await;
    assert_eq!(told(&mut turn).await, "all 1 slots");
    drop(first);
    assert_eq!(told(&mut turn).await, "slot 0");
    let gone = async |retired, beyond| {
        let is_so = |census: &Census| (census.retired, census.beyond) == (retired, beyond);
        slots.changes().wait_for(is_so).await.map(drop).expect("the slots are kept");
    };
    gone(1, 3).await;
    drop(third);
    gone(0, 1).await;
    slots.settled().await;
    assert_eq!(slots.census(), census(1, 1));
    let shown = || slots.board().slots().into_iter().map(|(slot, note)| (slot, note.state)).collect::<Vec<_>>();
    assert_eq!(shown(), [(0, SlotState::Free)]);
    scene.set(2).await;
    assert_eq!(shown().len(), 2);
}

#[tokio::test]
async fn a_slot_that_was_to_go_may_stay_after_all() {
    let scene = scene(2, 100).await;
    let slots = &scene.slots;
    let leases = [slots.lease(need(1)).await, slots.lease(need(1)).await];
    scene.set(1).await;
    scene.set(3).await;
    assert_eq!(slots.census().slots, 3);
    assert!(slots.board().slots().values().all(|note| !note.leaving));
    drop(leases);
    slots.settled().await;
    assert_eq!(slots.census(), census(3, 3));
}

#[tokio::test]
async fn what_a_retired_slot_gives_back_is_its_memory_alone() {
    let scene = scene(2, 2).await;
    let slots = &scene.slots;
    slots.settled().await;
    let (_first, second) = (slots.lease(need(1)).await, slots.lease(need(1)).await);
    scene.set(1).await;
    let mut turn = slots.queue(need(1)).await;
    told(&mut turn).await;
    slots.leaving(&second).await;
    assert_eq!(slots.lack(None).await, Lack { slot: true, memory_mib: 0, disk: false });
}

#[tokio::test]
async fn those_who_wait_are_looked_at_again_when_machines_may_take_more() {
    let scene = scene(2, 1).await;
    scene.slots.settled().await;
    let _lease = scene.slots.lease(need(1)).await;
    let mut turn = scene.slots.queue(need(1)).await;
    told(&mut turn).await;
    scene.budget.set(Limits { memory_mib: Some(2 * MACHINE), low_water_mib: 100 });
    assert_eq!(told(&mut turn).await, "slot 1");
}
