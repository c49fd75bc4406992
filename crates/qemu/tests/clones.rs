//! Machines that are frozen, and those that go on from there, in real QEMU.

mod common;
#[path = "common/counter.rs"]
mod counter;

use std::fs;
use std::time::{Duration, Instant};

use common::{DEADLINE, SHORT, SYSTEM, gone, script, signal, within};
use counter::{Counter, Workshop};
use process::{ExitStatus, Signal};
use qemu::{FreezeError, Identity, Machine, Memory, Qemu, RestoreError, StartError, State, Vm};
use serde_json::json;

#[tokio::test]
async fn clones_go_on_where_their_template_was_stopped_and_leave_it_as_it_is() {
    let workshop = Workshop::new().await;
    let mut template = workshop.boot(&workshop.template()).await;
    template.counts(&["1", "2"]).await;
    template.writes().await;
    workshop.freeze(&template.vm).await.expect("it is frozen");
    let before = workshop.contents();

    let (one, two) = (workshop.clone_of_template("one"), workshop.clone_of_template("two"));
    let (one, two) = tokio::join!(workshop.restore(&one), workshop.restore(&two));
    let mut clones = [one.expect("it is restored"), two.expect("it is restored")];
    for clone in &mut clones {
        assert_eq!(clone.vm.state(), State::Booting);
        assert_eq!(clone.vm.qmp().status().await.expect("it answers"), "running");
        clone.counts(&["3", "4"]).await;
        clone.writes().await;
    }
    clones[0].counts(&["5", "6"]).await;
    clones[1].counts(&["5"]).await;
    drop(clones);
    assert!(workshop.contents() == before, "a clone changed its template");
}

#[tokio::test]
async fn a_frozen_machine_has_ended_and_left_nothing_but_its_template() {
    let workshop = Workshop::new().await;
    let template = workshop.boot(&workshop.template()).await;
    let exited = template.vm.exited();
    workshop.freeze(&template.vm).await.expect("it is frozen");
    let exit = within(exited).await;
    let reason = exit.cause.as_ref().map(|cause| cause.reason.as_str());
    assert_eq!((exit.status, reason, &*exit.stderr), (ExitStatus::Code(0), Some("host-qmp-quit"), ""));
    assert_eq!(template.vm.state(), State::Exited(exit));
    let files = workshop.files("template");
    assert!(!files.pidfile.exists() && !files.qmp_socket.exists());
    // The state is what little there is besides the memory.
    let size = |file| fs::metadata(file).expect("it is there").len();
    assert_eq!(size(workshop.memory()), 16 << 20);
    assert!(size(workshop.state()) < 4 << 20, "{}", size(workshop.state()));
}

#[tokio::test]
async fn neither_a_freeze_nor_a_restore_is_taken_for_a_halt() {
    let workshop = Workshop::new().await;
    let template = workshop.boot(&workshop.template()).await;
    tokio::select! {
        biased;
        halt = template.vm.halted() => panic!("{halt}"),
        frozen = workshop.freeze(&template.vm) => frozen.expect("it is frozen"),
    }
    let mut clone = workshop.restore(&workshop.clone_of_template("clone")).await.expect("it is restored");
    let halted = clone.vm.halted();
    tokio::select! {
        biased;
        halt = halted => panic!("{halt}"),
        () = clone.counts(&["1", "2", "3"]) => {}
    }
}

#[tokio::test]
async fn a_clone_that_is_reset_boots_like_any_machine() {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let before = workshop.contents();
    let mut clone = workshop.restore(&workshop.clone_of_template("clone")).await.expect("it is restored");
    clone.counts(&["3"]).await;
    let reset = clone.vm.qmp().reset();
    clone.vm.qmp().system_reset().await.expect("it is reset");
    within(reset).await;
    assert_eq!(clone.hears().await, b's');
    clone.counts(&["1", "2"]).await;
    drop(clone);
    assert!(workshop.contents() == before, "a clone changed its template");
}

#[tokio::test]
async fn a_clone_that_is_halted_is_noticed() {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let mut clone = workshop.restore(&workshop.clone_of_template("clone")).await.expect("it is restored");
    clone.say(b'p').await;
    assert_eq!(within(clone.vm.halted()).await.to_string(), "guest-panicked");
}

#[tokio::test]
async fn machines_of_every_kind_are_frozen_and_restored() {
    for machine_type in ["q35", "q35,acpi=off", "pc", "microvm", "microvm,rtc=on,acpi=off"] {
        let workshop = Workshop::new().await;
        let of_type = |machine: Machine| Machine { machine_type: machine_type.to_owned(), ..machine };
        // Not all have a second serial port.
        let of_type = |machine| Machine { extra_args: Vec::new(), cpus: 2, ..of_type(machine) };
        let template = of_type(workshop.template());
        let vm = within(Vm::start(&workshop.qemu, &template, workshop.files("template"))).await.expect("it starts");
        workshop.freeze(&vm).await.expect(machine_type);
        let clone = of_type(Machine { drives: template.drives, ..workshop.clone_of_template("clone") });
        let state = fs::File::open(workshop.state()).expect("it is there");
        fs::set_permissions(workshop.disk("template"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("set");
        let vm = within(Vm::restore(&workshop.qemu, &clone, workshop.files("clone"), state)).await.expect(machine_type);
        assert_eq!(vm.qmp().status().await.expect("it answers"), "running");
    }
}

/// Asks in the words that people use.
async fn ask(vm: &Vm, words: &str) -> String {
    let answer = vm.qmp().execute("human-monitor-command", json!({ "command-line": words })).await;
    answer.expect("it answers").as_str().expect("a text").to_owned()
}

/// Returns a machine's generation, in the guest's order of bytes.
async fn generation(vm: &Vm) -> [u8; 16] {
    let answer = vm.qmp().execute("query-vm-generation-id", json!({})).await.expect("it has one");
    let digits = answer["guid"].as_str().expect("a text").replace('-', "");
    let mut bytes = u128::from_str_radix(&digits, 16).expect("hexadecimal").to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[tokio::test]
async fn the_guest_of_each_clone_sees_a_generation_of_its_own() {
    let workshop = Workshop::new().await;
    let template = workshop.boot(&workshop.template()).await;
    let of_template = generation(&template.vm).await;
    workshop.freeze(&template.vm).await.expect("it is frozen");
    // The firmware has put it where it can't be known from outside.
    let memory = fs::read(workshop.memory()).expect("readable");
    let address = memory.windows(16).position(|bytes| bytes == of_template).expect("the guest sees it");

    let mut all = vec![of_template];
    for name in ["one", "two"] {
        let clone = workshop.restore(&workshop.clone_of_template(name)).await.expect("it is restored");
        let own = generation(&clone.vm).await;
        let seen = ask(&clone.vm, &format!("xp /16xb {address}")).await;
        let seen: Vec<_> = seen.split("0x").skip(1).map(|byte| u8::from_str_radix(&byte[..2], 16)).collect();
        assert_eq!(seen, own.map(Ok));
        assert!(!all.contains(&own), "{all:x?} {own:x?}");
        all.push(own);
    }
}

#[tokio::test]
async fn clones_keep_the_network_address_that_their_guest_knows() {
    let workshop = Workshop::new().await;
    let address = async |vm: &Vm| {
        let network = ask(vm, "info network").await;
        network.split_once("macaddr=").expect("it has a card").1[..17].to_owned()
    };
    let template = workshop.boot(&workshop.template()).await;
    let of_template = address(&template.vm).await;
    workshop.freeze(&template.vm).await.expect("it is frozen");
    for name in ["one", "two"] {
        let clone = workshop.restore(&workshop.clone_of_template(name)).await.expect("it is restored");
        assert_eq!(address(&clone.vm).await, of_template);
    }
}

#[tokio::test]
async fn a_clone_has_only_that_memory_to_itself_which_it_wrote() {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let clone = workshop.restore(&workshop.clone_of_template("clone")).await.expect("it is restored");
    let maps = fs::read_to_string(format!("/proc/{}/smaps", clone.vm.pid())).expect("readable");
    let (_, of_memory) = maps.split_once("/template.ram\n").expect("it is mapped");
    let kib = |name: &str| {
        let line = of_memory.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix(" kB"));
        line.and_then(|kib| kib.trim().parse::<u32>().ok()).expect("a number")
    };
    // What it uses is the file's pages; those it wrote to are copies of its own, which the kernel calls anonymous.
    let (size, used, own) = (kib("Size:"), kib("Rss:"), kib("Anonymous:"));
    assert_eq!(size, 16 << 10);
    assert!((1..used / 2).contains(&own), "{own} KiB of {used} KiB");
}

#[tokio::test]
async fn clones_of_a_qemu_without_rom_leave_their_template_as_it_is_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let wrapper = directory.path().join("qemu-before-8.2");
    let hide = format!("*' -machine none '*) {SYSTEM} \"$@\" | sed 's/\"rom\"/\"rim\"/g' ;;");
    script(&wrapper, &format!("#!/bin/sh\ncase \" $* \" in\n{hide}\n*) exec {SYSTEM} \"$@\" ;;\nesac\n"));
    let workshop = Workshop::with(Qemu::probe(&wrapper, "qemu-img").await.expect("it can be used")).await;
    assert_eq!(workshop.qemu.features().memory_mode(), 0o600);
    workshop.frozen().await;
    let before = workshop.contents();
    let mut clone = workshop.restore(&workshop.clone_of_template("clone")).await.expect("it is restored");
    clone.counts(&["3", "4"]).await;
    drop(clone);
    assert!(workshop.contents() == before, "a clone changed its template");
}

/// What comes of a state file changed like this.
async fn check_state(change: fn(&mut Vec<u8>), expected: &str) {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let mut state = fs::read(workshop.state()).expect("readable");
    change(&mut state);
    fs::remove_file(workshop.state()).expect("removed");
    fs::write(workshop.state(), state).expect("written");
    let begun = Instant::now();
    let error = workshop.restore(&workshop.clone_of_template("clone")).await.err().expect("it is not restored");
    let (text, took) = (error.to_string(), begun.elapsed());
    assert!(matches!(error, RestoreError::Exited(_)) && text.contains(expected), "{text}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!workshop.files("clone").pidfile.exists());
}

#[tokio::test]
async fn a_state_that_is_none_is_an_error_at_once() {
    check_state(|state| state.clear(), "Not a migration stream").await;
    check_state(|state| state.truncate(2), "Not a migration stream").await;
    check_state(|state| state.truncate(state.len() / 2), "load of migration failed").await;
    check_state(|state| state[..1000].fill(b'x'), "Not a migration stream").await;
    check_state(|state| state.fill(0), "Not a migration stream").await;
}

/// What comes of a clone that is not what its template was.
async fn check_machine(change: fn(&mut Machine), expected: &str) {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let mut machine = workshop.clone_of_template("clone");
    change(&mut machine);
    let error = workshop.restore(&machine).await.err().expect("it is not restored");
    assert!(error.to_string().contains(expected), "{error}");
    assert!(!workshop.files("clone").pidfile.exists());
}

#[tokio::test]
async fn a_clone_that_is_another_machine_is_an_error() {
    // The words are those of 7.2 and 10.0.
    check_machine(|clone| clone.memory_mib = 32, "backing store size 0x1000000").await;
    let refused = "load of migration failed";
    check_machine(|clone| clone.memory_mib = 8, refused).await;
    check_machine(|clone| clone.cpus = 2, refused).await;
    check_machine(|clone| clone.machine_type = "pc".to_owned(), refused).await;
    check_machine(|clone| clone.extra_args.clear(), refused).await;
    check_machine(|clone| clone.memory = Memory::Private { file: "/no/such/file".into() }, "/no/such/file").await;
    check_machine(|clone| clone.memory = Memory::Own, "not that of a frozen one").await;
}

#[tokio::test]
async fn a_template_is_frozen_with_its_memory_in_a_file_only_and_a_clone_is_not_booted() {
    let workshop = Workshop::new().await;
    let own = workshop.boot(&workshop.machine("template", Memory::Own)).await;
    assert!(matches!(workshop.freeze(&own.vm).await, Err(FreezeError::NotShared)));
    assert_eq!(own.vm.qmp().status().await.expect("it answers"), "running");
    let error = Vm::start(&workshop.qemu, &workshop.clone_of_template("clone"), workshop.files("clone")).await;
    assert!(matches!(error, Err(StartError::NotBootable)));
}

#[tokio::test]
async fn a_guest_that_is_halted_is_not_frozen() {
    let workshop = Workshop::new().await;
    let mut template = workshop.boot(&workshop.template()).await;
    template.say(b'p').await;
    within(template.vm.halted()).await;
    let error = workshop.freeze(&template.vm).await.expect_err("it is halted").to_string();
    assert_eq!(error, "the guest does not run any more: its state is guest-panicked");
}

#[tokio::test]
async fn a_device_whose_state_can_not_be_saved_is_named() {
    let workshop = Workshop::new().await;
    let mut machine = workshop.template();
    machine.extra_args.extend(["-device", "nvme,serial=1"].map(str::to_owned));
    let template = workshop.boot(&machine).await;
    let error = workshop.freeze(&template.vm).await.expect_err("it can't be").to_string();
    assert!(error.starts_with("qemu can't save the machine's state: ") && error.contains("nvme"), "{error}");
}

#[tokio::test]
async fn a_state_file_that_is_full_is_an_error() {
    let workshop = Workshop::new().await;
    let template = workshop.boot(&workshop.template()).await;
    let full = fs::File::options().write(true).open("/dev/full").expect("it is there");
    let error = within(template.vm.freeze(full, DEADLINE)).await.expect_err("it is full").to_string();
    assert!(error.starts_with("write the machine's state: No space left on device"), "{error}");
}

#[tokio::test]
async fn a_qemu_that_hangs_is_not_waited_for_longer_than_asked() {
    let workshop = Workshop::new().await;
    let Counter { vm, .. } = workshop.boot(&workshop.template()).await;
    signal(vm.pid(), Signal::SIGSTOP);
    let state = fs::File::create(workshop.state()).expect("made");
    let error = within(vm.freeze(state, SHORT)).await.expect_err("it hangs").to_string();
    assert_eq!(error, "the machine was not frozen within 0.2 s");
}

#[tokio::test]
async fn a_qemu_that_is_killed_while_it_is_frozen_is_noticed_at_once() {
    let workshop = Workshop::new().await;
    let Counter { vm, .. } = workshop.boot(&workshop.template()).await;
    signal(vm.pid(), Signal::SIGSTOP);
    let state = fs::File::create(workshop.state()).expect("made");
    let freeze = vm.freeze(state, DEADLINE);
    // It has begun, and waits for an answer, when the other gets its turn.
    let kill = async { signal(vm.pid(), Signal::SIGKILL) };
    let (frozen, ()) = within(async { tokio::join!(freeze, kill) }).await;
    let error = frozen.expect_err("it is dead").to_string();
    assert_eq!(error, "qemu exited while the machine was frozen with signal 9 (SIGKILL)");
}

/// Begins to restore a clone, and does this to its QEMU once that is about to be ready. Returns why it was not restored, and
/// which process it was.
async fn disturbed(disturb: impl FnOnce(u32)) -> (String, Identity) {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let machine = workshop.clone_of_template("clone");
    let listener = workshop.listen("clone");
    let restore = workshop.restore_with(&machine);
    let disturb = async {
        let (line, _) = listener.accept().await.expect("qemu connects");
        let pid = line.peer_cred().expect("known").pid().and_then(|pid| u32::try_from(pid).ok()).expect("known");
        let identity = Identity::of(pid).expect("it runs");
        disturb(pid);
        identity
    };
    let (restored, identity) = tokio::join!(restore, disturb);
    (restored.expect_err("it was disturbed").to_string(), identity)
}

#[tokio::test]
async fn a_qemu_that_is_killed_while_it_is_restored_is_noticed_at_once() {
    let (error, _) = within(disturbed(|pid| signal(pid, Signal::SIGKILL))).await;
    assert!(error.ends_with("with signal 9 (SIGKILL)"), "{error}");
}

#[tokio::test]
async fn a_qemu_that_hangs_while_it_is_restored_is_given_up_and_killed() {
    let hang = |pid| {
        signal(pid, Signal::SIGSTOP);
        // Only deadlines are left to wait for, and those nobody has to wait for any more.
        tokio::time::pause();
    };
    let (error, identity) = disturbed(hang).await;
    tokio::time::resume();
    assert_eq!(error, "qemu did not answer on its monitor within 30 s and was killed");
    gone(&identity).await;
}

#[tokio::test]
async fn a_restore_nobody_waits_for_any_more_leaves_nothing() {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let machine = workshop.clone_of_template("clone");
    let listener = workshop.listen("clone");
    let pid = tokio::select! {
        restored = workshop.restore_with(&machine) => panic!("it was not disturbed: {restored:?}"),
        connected = listener.accept() => connected.expect("qemu connects").0.peer_cred().expect("known").pid(),
    };
    if let Ok(identity) = Identity::of(pid.and_then(|pid| u32::try_from(pid).ok()).expect("known")) {
        gone(&identity).await;
    }
    let files = workshop.files("clone");
    within(async {
        while files.pidfile.exists() || files.qmp_socket.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_disk_that_grows_beyond_its_limit_is_told_once_it_does() {
    let workshop = Workshop::new().await;
    workshop.frozen().await;
    let mut clone = workshop.restore(&workshop.clone_of_template("clone")).await.expect("it is restored");
    let disk = workshop.disk("clone");
    let size = || fs::metadata(&disk).expect("it is there").len();
    let limit = size() + (1 << 20);
    let mut grown = Box::pin(clone.vm.grows_beyond(limit));
    let writes = async {
        for _ in 0..100 {
            clone.writes().await;
        }
    };
    tokio::select! {
        biased;
        grown = &mut grown => grown.expect("it is told"),
        () = writes => panic!("nobody is told"),
    }
    // It is told when the write that goes beyond begins. A cluster is 64 KiB.
    assert!(size().abs_diff(limit) <= 128 << 10, "{} for {limit}", size());
}
