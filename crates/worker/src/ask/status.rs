//! How a worker is, on a page for people.

use super::style::{Colour, Style};
use super::table::{self, Cell};
use crate::control::{
    CommandStatus, LineState, LooseCommand, Machines, MasterStatus, Printable, RefusedBuilder, SlotStatus, SlotWord,
    Status,
};

/// The page.
pub(super) fn page(status: &Status, style: Style) -> String {
    let mut lines = vec![worker(status, style), master(&status.master, style)];
    lines.extend(
        status.refused_builders.iter().map(|refused| style.paint(&refused_builder(refused), Some(Colour::Red))),
    );
    lines.extend(machines(&status.machines));
    if !status.slots.is_empty() {
        lines.push(String::new());
        let rows: Vec<_> = status.slots.iter().map(row).collect();
        lines.extend(table::lines(
            ["SLOT", "STATE", "FOR", "BUILDER", "STEP", "FOR", "IMAGE", "HOW", "PORT", "PID", "MEMORY"],
            &rows,
            style,
        ));
        lines.extend(status.slots.iter().flat_map(remarks));
    }
    if !status.commands.is_empty() {
        lines.push(String::new());
        lines.extend(table::lines(
            ["ELSEWHERE", "BUILDER", "STEP", "FOR"],
            &status.commands.iter().map(loose).collect::<Vec<_>>(),
            style,
        ));
    }
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

fn worker(status: &Status, style: Style) -> String {
    let Status { worker, version, pid, uptime_seconds, state, .. } = status;
    let colour = if state == "running" { Colour::Green } else { Colour::Yellow };
    let (worker, state) = (style.paint(&printable(worker), Some(Colour::Bold)), style.paint(state, Some(colour)));
    format!("{worker}: {state}, up for {}, process {pid}, kvm-worker {version}", span(*uptime_seconds))
}

fn master(master: &MasterStatus, style: Style) -> String {
    let MasterStatus { address, protocol, state, seconds, failure, retry_seconds } = master;
    let since = span(*seconds);
    let failure = failure.as_ref().map(|failure| format!(": {}", printable(failure))).unwrap_or_default();
    let (what, colour) = match state {
        LineState::Connected => (format!("connected for {since}"), Colour::Green),
        LineState::Connecting => (format!("connecting, without a line for {since}{failure}"), Colour::Yellow),
        LineState::Waiting => {
            let retry = span(retry_seconds.unwrap_or_default());
            (format!("not connected for {since}, again in {retry}{failure}"), Colour::Red)
        }
    };
    format!("master {} ({protocol}): {}", printable(address), style.paint(&what, Some(colour)))
}

fn refused_builder(refused: &RefusedBuilder) -> String {
    let RefusedBuilder { builder, directory, why } = refused;
    let (directory, why) = (printable(directory), printable(why));
    match builder {
        Some(builder) => format!("builder {} refused: can't make its directory {directory}: {why}", printable(builder)),
        None => format!("can't make the builder's directory {directory}: {why}"),
    }
}

fn machines(machines: &Machines) -> Option<String> {
    let Machines { slots, free, warm, held, waiting, waits_for, deadlock } = machines;
    if *slots == 0 {
        return None;
    }
    let plural = if *slots == 1 { "slot" } else { "slots" };
    let mut line = format!("{slots} {plural}: {free} free");
    for (count, what) in [(usize::from(*warm), "warm"), (*held, "held")] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    if *waiting > 0 {
        line += &format!("; {waiting} waiting");
        if let Some(wait) = waits_for {
            line += &format!(", the first is {}", printable(wait));
        }
    }
    if let Some(deadlock) = deadlock {
        line += &format!("\ndeadlock: {}", printable(deadlock));
    }
    Some(line)
}

fn row(slot: &SlotStatus) -> [Cell; 11] {
    let (word, colour) = state(slot.state);
    let (step, age) = step(slot);
    let owner = slot.builder.as_ref().or(slot.vm.as_ref().filter(|_| slot.builder.is_none()));
    let builder = owner.map(|owner| match slot.build {
        Some(build) => format!("{owner} #{build}"),
        None => owner.clone(),
    });
    let image = slot.image.as_ref().map(|image| match slot.generation {
        // The first is the image's disk as configured.
        Some(generation) if generation > 1 => format!("{image} {generation}"),
        _ => image.clone(),
    });
    [
        Cell::text(slot.slot.to_string()).right(),
        Cell::text(word).in_colour(colour),
        Cell::text(span(slot.seconds)).right(),
        Cell::maybe(builder),
        Cell::maybe(step),
        Cell::maybe(age.map(span)).right(),
        Cell::maybe(image),
        Cell::maybe(slot.how.as_ref()),
        Cell::text(slot.ssh_port.to_string()).right(),
        Cell::maybe(slot.pid).right(),
        Cell::maybe(slot.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20))).right(),
    ]
}

/// What goes on in a slot, and for how long.
fn step(slot: &SlotStatus) -> (Option<String>, Option<f64>) {
    if let Some(doing) = &slot.doing {
        return (Some(doing.clone()), slot.doing_seconds);
    }
    let oldest = slot.commands.iter().max_by(|one, other| one.seconds.total_cmp(&other.seconds));
    match oldest {
        Some(command) => {
            let more = slot.commands.len() - 1;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (Some(named(command) + &more), Some(command.seconds))
        }
        None => (None, None),
    }
}

fn named(command: &CommandStatus) -> String {
    let CommandStatus { command, step, .. } = command;
    step.as_ref().unwrap_or(command).clone()
}

fn state(state: SlotWord) -> (&'static str, Option<Colour>) {
    match state {
        SlotWord::Free => ("free", Some(Colour::Dim)),
        SlotWord::Starting => ("starting", Some(Colour::Yellow)),
        SlotWord::Up => ("up", Some(Colour::Green)),
        SlotWord::Warm => ("warm", None),
        SlotWord::Held => ("held", Some(Colour::Yellow)),
        SlotWord::Template => ("template", None),
        SlotWord::Stopping => ("stopping", Some(Colour::Yellow)),
        SlotWord::Cleaning => ("cleaning", Some(Colour::Yellow)),
        SlotWord::Quarantined => ("quarantined", Some(Colour::Red)),
    }
}

/// What there is no column for.
fn remarks(slot: &SlotStatus) -> Vec<String> {
    let why = slot.why.as_ref().map(|why| format!("can't be cleaned: {}", printable(why)));
    let leaving = slot.leaving.then(|| "goes when it is free, as there are to be fewer".to_owned());
    let held = slot.held_seconds.map(|seconds| format!("held for a person for {} more", span(seconds)));
    let console = slot.console.as_ref().map(|line| format!("console: {}", printable(line)));
    let remarks = [why, leaving, held, console].into_iter().flatten();
    remarks.map(|remark| format!("slot {}: {remark}", slot.slot)).collect()
}

fn loose(command: &LooseCommand) -> [Cell; 4] {
    let place = match &command.vm {
        Some(vm) => format!("waits for vm {vm}"),
        None => "host".to_owned(),
    };
    [
        Cell::text(place),
        Cell::maybe(command.builder.as_ref()),
        Cell::text(named(&command.command)),
        Cell::text(span(command.command.seconds)).right(),
    ]
}

fn printable(text: &str) -> String {
    Printable(text).to_string()
}

/// A time span, about.
fn span(seconds: f64) -> String {
    // A negative or absurd one becomes the nearest that there is.
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16, state: SlotWord, seconds: f64) -> SlotStatus {
        SlotStatus {
            slot: number,
            state,
            seconds,
            why: None,
            leaving: false,
            doing: None,
            doing_seconds: None,
            held_seconds: None,
            builder: None,
            build: None,
            vm: None,
            image: None,
            generation: None,
            how: None,
            ssh_port: 2222 + number,
            pid: None,
            memory_bytes: None,
            console: None,
            commands: Vec::new(),
        }
    }

    fn command(command: &str, step: Option<&str>, seconds: f64) -> CommandStatus {
        CommandStatus { command: command.to_owned(), step: step.map(str::to_owned), seconds }
    }

    fn status(slots: Vec<SlotStatus>) -> Status {
        Status {
            worker: "kvm1".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 4000,
            uptime_seconds: 100_000.0,
            state: "running".to_owned(),
            master: MasterStatus {
                address: "pb://master:9989".to_owned(),
                protocol: "pb".to_owned(),
                state: LineState::Connected,
                seconds: 7300.0,
                failure: None,
                retry_seconds: None,
            },
            refused_builders: Vec::new(),
            machines: Machines {
                slots: u16::try_from(slots.len()).expect("they are few"),
                free: 1,
                warm: 0,
                held: 0,
                waiting: 0,
                waits_for: None,
                deadlock: None,
            },
            slots,
            commands: Vec::new(),
        }
    }

    #[test]
    fn a_worker_at_work_is_a_page() {
        let text = |text: &str| Some(text.to_owned());
        let up = SlotStatus {
            builder: text("nightly"),
            build: Some(17),
            vm: text("default"),
            image: text("debian-12"),
            generation: Some(3),
            how: text("clone"),
            pid: Some(4711),
            memory_bytes: Some(331 << 20),
            commands: vec![command("stat", None, 1.0), command("shell", Some("compile"), 125.0)],
            ..slot(0, SlotWord::Up, 250.0)
        };
        let starting = SlotStatus {
            doing: text("booting: waiting for ssh"),
            doing_seconds: Some(3.2),
            builder: text("try"),
            vm: text("server"),
            image: text("plain"),
            pid: Some(4712),
            memory_bytes: Some(90 << 20),
            console: text("[    1.3] Run /init\u{7}"),
            commands: vec![command("vm_start", None, 4.0)],
            ..slot(1, SlotWord::Starting, 4.0)
        };
        let held = SlotStatus {
            builder: text("try"),
            build: Some(4),
            image: text("plain"),
            generation: Some(1),
            how: text("warm"),
            held_seconds: Some(600.0),
            leaving: true,
            pid: Some(4713),
            ..slot(3, SlotWord::Held, 3000.0)
        };
        let broken =
            SlotStatus { why: text("remove /s/slots/4: Permission denied"), ..slot(4, SlotWord::Quarantined, 90000.0) };
        let mut status = status(vec![up, starting, slot(2, SlotWord::Free, 10.0), held, broken]);
        status.machines = Machines {
            held: 1,
            waiting: 2,
            waits_for: text("waiting for a slot"),
            deadlock: text("a build waits\u{7}"),
            ..status.machines
        };
        status.commands = vec![
            LooseCommand { builder: text("docs"), vm: None, command: command("shell", None, 61.0) },
            LooseCommand { builder: text("try"), vm: text("client"), command: command("vm_start", None, 1.0) },
        ];
        assert_eq!(
            page(&status, Style::PLAIN),
            "\
kvm1: running, up for 1 d 3 h, process 4000, kvm-worker 0.1.0
master pb://master:9989 (pb): connected for 2 h 1 min
5 slots: 1 free, 1 held; 2 waiting, the first is waiting for a slot
deadlock: a build waits\\u{7}

SLOT  STATE            FOR  BUILDER      STEP                        FOR  IMAGE        HOW    PORT   PID   MEMORY
   0  up             4 min  nightly #17  compile and 1 more        2 min  debian-12 3  clone  2222  4711  331 MiB
   1  starting         4 s  try          booting: waiting for ssh    3 s  plain        -      2223  4712   90 MiB
   2  free            10 s  -            -                             -  -            -      2224     -        -
   3  held          50 min  try #4       -                             -  plain        warm   2225  4713        -
   4  quarantined  1 d 1 h  -            -                             -  -            -      2226     -        -
slot 1: console: [    1.3] Run /init\\u{7}
slot 3: goes when it is free, as there are to be fewer
slot 3: held for a person for 10 min more
slot 4: can't be cleaned: remove /s/slots/4: Permission denied

ELSEWHERE            BUILDER  STEP        FOR
host                 docs     shell     1 min
waits for vm client  try      vm_start    1 s
"
        );
    }

    #[test]
    fn a_line_that_is_not_there_says_why() {
        let line = |state, failure: Option<&str>, retry_seconds| MasterStatus {
            address: "ws://master:9990".to_owned(),
            protocol: "msgpack".to_owned(),
            state,
            seconds: 59.9,
            failure: failure.map(str::to_owned),
            retry_seconds,
        };
        let check = |line: MasterStatus, expected: &str| {
            let status = Status { master: line, ..status(Vec::new()) };
            let page = page(&status, Style::PLAIN);
            assert_eq!(page.lines().nth(1), Some(expected));
            // A worker without images has no machines to speak of.
            assert_eq!(page.lines().count(), 2);
        };
        check(
            line(LineState::Waiting, Some("connection refused"), Some(4.5)),
            "master ws://master:9990 (msgpack): not connected for 59 s, again in 4 s: connection refused",
        );
        check(
            line(LineState::Connecting, None, None),
            "master ws://master:9990 (msgpack): connecting, without a line for 59 s",
        );
        check(line(LineState::Connected, None, None), "master ws://master:9990 (msgpack): connected for 59 s");
    }

    #[test]
    fn a_builder_that_is_refused_is_named() {
        let refused = |builder: Option<&str>, directory: &str| RefusedBuilder {
            builder: builder.map(str::to_owned),
            directory: directory.to_owned(),
            why: "Permission denied (os error 13)".to_owned(),
        };
        let refused_builders = vec![refused(Some("nightly"), "/data/x"), refused(None, "/data/\u{7}")];
        let page = page(&Status { refused_builders, ..status(Vec::new()) }, Style::PLAIN);
        assert_eq!(
            page.lines().skip(2).collect::<Vec<_>>(),
            [
                "builder nightly refused: can't make its directory /data/x: Permission denied (os error 13)",
                "can't make the builder's directory /data/\\u{7}: Permission denied (os error 13)"
            ]
        );
    }

    #[test]
    fn time_spans_are_short() {
        let check = |seconds, expected: &str| assert_eq!(span(seconds), expected);
        check(0.0, "0 s");
        check(-1.0, "0 s");
        check(59.9, "59 s");
        check(60.0, "1 min");
        check(3599.0, "59 min");
        check(3600.0, "1 h 0 min");
        check(86399.0, "23 h 59 min");
        check(86400.0, "1 d 0 h");
        check(f64::NAN, "0 s");
    }
}
