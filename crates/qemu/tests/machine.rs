//! Machines in real QEMU, from their start to their end.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::{DEADLINE, SHORT, Slot, gone, qemu, signal, within};
use process::{ExitStatus, Signal};
use qemu::qmp::Event;
use qemu::{BootError, Identity, Lan, Outside, Patience, Pidfile, Rung, Shutdown, StartError, State, Vm};
use tokio::net::UnixDatagram;

/// Patience with which nothing is given up that works at all.
const LONG: Patience =
    Patience { guest: DEADLINE, powerdown: DEADLINE, quit: DEADLINE, terminate: DEADLINE, kill: DEADLINE };

/// Patience with everything that is expected to fail.
const IMPATIENT: Patience = Patience { guest: SHORT, powerdown: SHORT, quit: SHORT, terminate: SHORT, kill: DEADLINE };

/// What a shutdown comes to: the rung and the exit status.
async fn check(vm: &Vm, shutdown: Shutdown, rung: Rung, status: ExitStatus, reason: Option<&str>) {
    let ended = within(vm.shutdown(shutdown)).await.expect("it ends");
    let found = (ended.rung, ended.exit.status, ended.exit.cause.as_ref().map(|cause| cause.reason.as_str()));
    assert_eq!(found, (Some(rung), status, reason), "{ended:?}");
    assert_eq!(vm.state(), State::Exited(ended.exit));
}

#[tokio::test]
async fn a_machine_boots_and_its_power_button_turns_it_off() {
    let slot = Slot::new();
    let vm = slot.start().await;
    assert_eq!(vm.state(), State::Booting);
    vm.boot(slot.guest_is_up(), DEADLINE).await.expect("the guest boots");
    assert_eq!(vm.state(), State::Ready);
    assert_eq!(vm.qmp().status().await.expect("it answers"), "running");
    let console = vm.console_tail(1000).expect("readable");
    assert_eq!(console.lines().last(), Some("guest: up"), "{console:?}");
    check(
        &vm,
        Shutdown::from(Rung::Powerdown).patience(LONG),
        Rung::Powerdown,
        ExitStatus::Code(0),
        Some("guest-shutdown"),
    )
    .await;
    assert_eq!(slot.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn a_throw_away_machine_quits_at_once() {
    let slot = Slot::new();
    let vm = slot.start().await;
    check(&vm, Shutdown::from(Rung::Quit).patience(LONG), Rung::Quit, ExitStatus::Code(0), Some("host-qmp-quit")).await;
}

#[tokio::test]
async fn a_terminated_machine_says_so() {
    let slot = Slot::new();
    let vm = slot.start().await;
    check(
        &vm,
        Shutdown::from(Rung::Terminate).patience(LONG),
        Rung::Terminate,
        ExitStatus::Code(0),
        Some("host-signal"),
    )
    .await;
}

#[tokio::test]
async fn a_machine_that_does_nothing_any_more_is_killed_in_the_end() {
    let slot = Slot::new();
    let vm = slot.boot().await;
    // Neither the monitor nor SIGTERM reaches it.
    signal(vm.pid(), Signal::SIGSTOP);
    let shutdown = Shutdown::by_guest(std::future::pending::<Result<(), String>>()).patience(IMPATIENT);
    check(&vm, shutdown, Rung::Kill, ExitStatus::Signal(9), None).await;
    assert_eq!(slot.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_that_ignores_its_power_button_loses_its_power() {
    let slot = Slot::new();
    // The firmware is still at work, and does not watch the button.
    let mut machine = slot.machine();
    machine.drives.clear();
    let vm = within(Vm::start(&qemu().await, &machine, slot.files())).await.expect("it starts");
    let patience = Patience { powerdown: SHORT, ..LONG };
    check(
        &vm,
        Shutdown::from(Rung::Powerdown).patience(patience),
        Rung::Quit,
        ExitStatus::Code(0),
        Some("host-qmp-quit"),
    )
    .await;
}

#[tokio::test]
async fn the_guests_own_command_comes_first() {
    let slot = Slot::new();
    let vm = slot.boot().await;
    // Stands for `sudo poweroff`: what this guest understands is its power button.
    let qmp = vm.qmp().clone();
    let command = async move { qmp.system_powerdown().await };
    check(&vm, Shutdown::by_guest(command).patience(LONG), Rung::Guest, ExitStatus::Code(0), Some("guest-shutdown"))
        .await;
}

#[tokio::test]
async fn a_guest_command_that_fails_costs_no_time() {
    let slot = Slot::new();
    let vm = slot.boot().await;
    let command = async { Err("ssh does not answer") };
    check(
        &vm,
        Shutdown::by_guest(command).patience(LONG),
        Rung::Powerdown,
        ExitStatus::Code(0),
        Some("guest-shutdown"),
    )
    .await;
}

#[tokio::test]
async fn a_second_shutdown_hurries_the_first() {
    let slot = Slot::new();
    let vm = slot.start().await;
    signal(vm.pid(), Signal::SIGSTOP);
    let mut states = vm.states();
    let first = vm.shutdown(Shutdown::from(Rung::Quit).patience(LONG));
    let second = async {
        let shutting_down = |state: &State| *state == State::ShuttingDown { rung: Rung::Quit };
        states.wait_for(shutting_down).await.expect("the machine is there");
        vm.shutdown(Shutdown::from(Rung::Kill)).await
    };
    let (first, second) = within(async { tokio::join!(first, second) }).await;
    let (first, second) = (first.expect("it ends"), second.expect("it ends"));
    assert_eq!((first.rung, &first.exit), (Some(Rung::Kill), &second.exit));
    assert_eq!(first.exit.status, ExitStatus::Signal(9));
}

#[tokio::test]
async fn a_shutdown_goes_on_when_nobody_waits_for_it() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let shutdown = vm.shutdown(Shutdown::from(Rung::Quit).patience(LONG));
    assert!(tokio::time::timeout(Duration::ZERO, shutdown).await.is_err());
    assert_eq!(within(vm.exited()).await.status, ExitStatus::Code(0));
}

#[tokio::test]
async fn shutting_down_what_has_exited_says_how_it_did() {
    let slot = Slot::new();
    let vm = slot.start().await;
    signal(vm.pid(), Signal::SIGKILL);
    let exit = within(vm.exited()).await;
    let ended = within(vm.shutdown(Shutdown::from(Rung::Guest))).await.expect("it has ended");
    assert_eq!((ended.rung, ended.exit), (None, exit));
}

#[tokio::test]
async fn a_machine_killed_while_it_boots_is_noticed_at_once() {
    let slot = Slot::new();
    let vm = slot.start().await;
    signal(vm.pid(), Signal::SIGKILL);
    let never = std::future::pending::<Result<(), String>>();
    let error = within(vm.boot(never, DEADLINE)).await.expect_err("it is dead").to_string();
    assert_eq!(error, "qemu exited during boot with signal 9 (SIGKILL)");
    assert_eq!(slot.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_asked_of_a_machine_that_dies_is_explained_by_its_death() {
    let slot = Slot::new();
    let vm = slot.start().await;
    signal(vm.pid(), Signal::SIGKILL);
    let cut = async { Err::<(), _>("connection reset") };
    let error = within(vm.boot(cut, DEADLINE)).await.expect_err("it is dead").to_string();
    assert_eq!(error, "qemu exited during boot with signal 9 (SIGKILL)");
}

#[tokio::test]
async fn a_guest_that_panics_while_it_boots_is_noticed_at_once() {
    let slot = Slot::new();
    let mut machine = slot.machine();
    // What the guest takes for the debug port: the lowest bit of a byte sent there means a panic.
    machine.extra_args = ["-device", "pvpanic,ioport=0xe9"].map(str::to_owned).to_vec();
    let vm = within(Vm::start(&qemu().await, &machine, slot.files())).await.expect("it starts");
    let never = std::future::pending::<Result<(), String>>();
    let error = within(vm.boot(never, DEADLINE)).await.expect_err("it is stopped").to_string();
    assert_eq!(error, "qemu stopped the guest during boot: guest-panicked");
}

#[tokio::test]
async fn a_guest_that_restarts_again_and_again_is_given_up() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let never = std::future::pending::<Result<(), String>>();
    let mut resets = vm.qmp().events();
    let button = async {
        loop {
            vm.qmp().system_reset().await.expect("it is pressed");
            while !matches!(resets.recv().await.expect("an event"), qemu::qmp::Event::Reset(_)) {}
        }
    };
    let error = tokio::select! {
        booted = within(vm.boot(never, DEADLINE)) => booted.expect_err("it is given up"),
        () = button => unreachable!("it has no end"),
    };
    assert_eq!(error.to_string(), "the guest restarted 5 times during boot and was not ready in between");
}

#[tokio::test]
async fn a_guest_that_never_answers_is_given_up_and_still_runs() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let never = std::future::pending::<Result<(), String>>();
    let result = vm.boot(never, SHORT).await;
    assert!(matches!(result, Err(BootError::TimedOut { after: SHORT })));
    assert_eq!(vm.state(), State::Booting);
    let refused = async { Err::<(), _>("the key was refused") };
    assert_eq!(
        vm.boot(refused, DEADLINE).await.map_err(|error| error.to_string()),
        Err("the key was refused".to_owned())
    );
}

#[tokio::test]
async fn a_dropped_machine_is_killed_and_its_files_are_gone() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let (identity, exited) = (vm.identity().clone(), vm.exited());
    drop(vm);
    assert_eq!(within(exited).await.status, ExitStatus::Signal(9));
    gone(&identity).await;
    assert_eq!(slot.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn the_pidfile_names_the_running_machine() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let identity = Identity::of(vm.pid()).expect("it runs");
    assert_eq!(Pidfile::new(slot.files().pidfile).read().expect("readable"), Some(identity.clone()));
    assert_eq!(vm.identity(), &identity);
    assert_eq!(slot.remains(), ["qemu.pid", "qmp.sock"]);
}

#[tokio::test]
async fn nobody_else_can_read_what_belongs_to_a_machine() {
    let slot = Slot::new();
    let _vm = slot.start().await;
    for path in [slot.files().pidfile, slot.files().qmp_socket, slot.files().console_log] {
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn an_occupied_slot_is_left_alone() {
    let slot = Slot::new();
    let vm = slot.start().await;
    match Vm::start(&qemu().await, &slot.machine(), slot.files()).await {
        Err(StartError::Occupied { pid, .. }) => assert_eq!(pid, vm.pid()),
        other => panic!("unexpected {other:?}"),
    }
    assert_eq!(vm.qmp().status().await.expect("it answers"), "running");
    assert_eq!(slot.remains(), ["qemu.pid", "qmp.sock"]);
}

#[tokio::test]
async fn stale_files_do_not_prevent_a_start() {
    let slot = Slot::new();
    let dead = Identity { pid: std::process::id(), start_time: 1, boot_id: "another".to_owned() };
    Pidfile::new(slot.files().pidfile).write(&dead).expect("written");
    fs::write(slot.files().qmp_socket, "").expect("written");
    let vm = slot.start().await;
    assert_eq!(vm.qmp().status().await.expect("it answers"), "running");
}

/// How a start fails.
async fn start_error(slot: &Slot, machine: &qemu::Machine) -> String {
    let error = within(Vm::start(&qemu().await, machine, slot.files())).await.expect_err("it can't start").to_string();
    assert_eq!(slot.remains(), Vec::<String>::new());
    error
}

#[tokio::test]
async fn a_start_that_fails_says_why_in_qemus_words() {
    let slot = Slot::new();
    let mut machine = slot.machine();
    machine.drives[0].file = "/no/such.qcow2".into();
    let error = start_error(&slot, &machine).await;
    assert!(error.starts_with("qemu exited during start with code 1: -blockdev "), "{error}");
    assert!(error.ends_with("Could not open '/no/such.qcow2': No such file or directory"), "{error}");

    let mut machine = slot.machine();
    machine.extra_args = vec!["-no-such-option".to_owned()];
    assert_eq!(
        start_error(&slot, &machine).await,
        "qemu exited during start with code 1: -no-such-option: invalid option"
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let slot = Slot::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let mut machine = slot.machine();
    machine.network.host_port = listener.local_addr().expect("it is bound").port();
    let error = start_error(&slot, &machine).await;
    assert!(error.contains(&format!("tcp:127.0.0.1:{}-:22", machine.network.host_port)), "{error}");
}

#[tokio::test]
async fn a_start_in_a_directory_that_is_not_there_names_the_file() {
    let slot = Slot::new();
    let mut files = slot.files();
    files.qmp_socket = slot.path("gone/qmp.sock");
    let error = Vm::start(&qemu().await, &slot.machine(), files.clone()).await.expect_err("it can't start").to_string();
    assert_eq!(error, format!("make {}: No such file or directory (os error 2)", files.qmp_socket.display()));
}

#[tokio::test]
async fn a_start_nobody_waits_for_leaves_nothing() {
    let slot = Slot::new();
    let qemu = qemu().await;
    // QEMU waits for the one who listens here, and so does not get as far as answering.
    let machine = slot.machine();
    let _ = tokio::time::timeout(Duration::from_millis(20), Vm::start(&qemu, &machine, slot.files())).await;
    within(async {
        while !slot.remains().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn events_reach_every_subscriber() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let (mut one, mut two) = (vm.qmp().events(), vm.qmp().events());
    vm.qmp().execute("stop", serde_json::json!({})).await.expect("it stops");
    assert_eq!(within(one.recv()).await, Ok(Event::Stop));
    assert_eq!(within(two.recv()).await, Ok(Event::Stop));
    assert_eq!(vm.qmp().status().await.expect("it answers"), "paused");
}

#[tokio::test]
async fn a_reset_is_told_and_the_machine_runs_on() {
    let slot = Slot::new();
    let vm = slot.boot().await;
    let reset = vm.qmp().reset();
    vm.qmp().system_reset().await.expect("it is reset");
    within(reset).await;
    assert_eq!(vm.qmp().status().await.expect("it answers"), "running");
    assert_eq!(vm.state(), State::Ready);
}

#[tokio::test]
async fn a_command_qemu_refuses_says_why() {
    let slot = Slot::new();
    let vm = slot.start().await;
    let error = vm.qmp().execute("no-such-command", serde_json::json!({})).await.expect_err("it is refused");
    assert_eq!(error.to_string(), "qemu refused no-such-command: The command no-such-command has not been found");
}

#[tokio::test]
async fn a_command_to_a_machine_that_hangs_has_a_deadline() {
    let slot = Slot::new();
    let vm = slot.start().await;
    signal(vm.pid(), Signal::SIGSTOP);
    let error =
        vm.qmp().execute_within("query-status", serde_json::json!({}), SHORT).await.expect_err("nobody answers");
    assert_eq!(error.to_string(), "qemu did not answer query-status within 0.2 s");
}

#[tokio::test]
async fn machines_of_every_kind_start() {
    let slot = Slot::new();
    for (machine_type, outside) in [("pc", Outside::Open), ("q35", Outside::Open), ("microvm", Outside::Closed)] {
        let mut machine = slot.machine();
        machine.machine_type = machine_type.to_owned();
        machine.network.outside = outside;
        let vm = within(Vm::start(&qemu().await, &machine, slot.files())).await.expect("it starts");
        check(&vm, Shutdown::from(Rung::Quit).patience(LONG), Rung::Quit, ExitStatus::Code(0), Some("host-qmp-quit"))
            .await;
    }
}

#[tokio::test]
async fn a_machine_on_a_private_network_is_heard_there() {
    let slot = Slot::new();
    for machine_type in ["q35", "microvm"] {
        let lan = Lan::new();
        let (port, cable) = lan.join().expect("it joins");
        let (_listener, end) = lan.join().expect("it joins");
        let mut machine = slot.machine();
        machine.machine_type = machine_type.to_owned();
        let qemu = qemu().await;
        let vm = within(Vm::start_on(&qemu, &machine, slot.files(), Some(cable))).await.expect("it starts");
        let once = serde_json::json!({"initial": 50, "max": 50, "rounds": 1, "step": 50});
        vm.qmp().execute("announce-self", once).await.expect("its cards announce themselves");
        let socket = UnixDatagram::from_std(end.into_socket()).expect("a socket");
        let mut frame = [0; 100];
        let length = within(socket.recv(&mut frame)).await.expect("it is received");
        // To everybody, from its card: a request of the reverse address resolution protocol.
        let mac = port.mac().to_string();
        let shown: Vec<_> = frame[..length.min(14)].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown.join(":"), format!("ff:ff:ff:ff:ff:ff:{mac}:80:35"));
        within(vm.shutdown(Shutdown::from(Rung::Quit))).await.expect("it ends");
    }
}
