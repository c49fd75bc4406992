//! The worker's own log: what it tells of each build, and what it never tells.

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Master, Protocol, Results, Rig, WITH_GUESTS, over_both_protocols};
use serde_json::Value;

/// Has the guest print a word on its console, without having the word among the program's arguments.
const PRINT: &str = r#"sudo sh -c 'echo con$0word >/dev/console' sole-"#;

/// What is printed on the host, in the guest, to its console and to a log file.
const PRINTED: [&str; 4] = ["printed-on-the-host", "printed-in-the-guest", "console-word", "followed-word"];

/// An obfuscated argument, a variable's value, what a program reads, and what is in a file.
const SECRET: [&str; 4] = ["hunter2", "value-of-a-variable", "said-to-a-program", "content-of-a-file"];

fn steps() -> String {
    let env = r#"env={"API_TOKEN": "value-of-a-variable"}"#;
    format!(
        r#"
    steps.ShellCommand(
        command=["sh", "-c", "echo printed-on-$0-host $1; cat; echo followed-word >f; sleep 1", "the", ("obfuscated", "hunter2", "XXXX")],
        initialStdin="said-to-a-program", logfiles={{"f": "f"}}, {env}),
    steps.StartVM(image="plain", console_log="console"),
    steps.VMShellCommand(command="echo printed-in-$(echo the)-guest; cat; {PRINT}; echo content-of-a-file >file", console_log="console",
        initialStdin="said-to-a-program", {env}),
    steps.VMCopyOut("file", "file"),
    steps.FileUpload("file", "file"),
    # Ends by itself, with the word on its console.
    steps.VMShellCommand(name="end", command="{PRINT}; sudo poweroff -f; sleep 100"),
    steps.StopVM(),"#,
        PRINT = PRINT.replace('"', "\\\""),
    )
}

over_both_protocols! { nothing_that_is_printed_and_no_secret_is_in_the_log }

fn nothing_that_is_printed_and_no_secret_is_in_the_log(protocol: Protocol) -> Result<()> {
    let plan = Master::plan().speaking(protocol).builder("build", &steps());
    // So that it is not tried again.
    let plan = plan.python(
        "import buildbot_kvm\nfrom buildbot.process.results import FAILURE\nbuildbot_kvm.RESULTS['vm_lost'] = FAILURE",
    );
    let mut rig = Rig::of(plan.start()?, |host| {
        host.image("plain", Guest::plain()?);
        host.set("log.filter", "trace");
        host.set("log.format", "json");
        Ok(())
    })?;
    let build = rig.master.run_within("build", WITH_GUESTS)?;
    build.ended(Results::Failure)?;
    let story = build.story();
    rig.host.slots_clean()?;
    ensure!(rig.worker.stop()?.success(), "the worker did not end well");
    let log = rig.worker.transcript().text();
    for word in PRINTED {
        ensure!(story.contains(word), "{word} was not printed: {story}");
    }
    for word in PRINTED.iter().chain(&SECRET).chain(&[Master::PASSWORD]) {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(word)).collect();
        ensure!(lines.is_empty(), "{word} is in the log: {lines:#?}");
    }

    let entries = log.lines().map(|line| serde_json::from_str(line).with_context(|| format!("read {line:?}")));
    let entries = Entries(entries.collect::<Result<_>>()?);
    let connected = entries.saying("connected")?;
    let line = span(connected, "line")?;
    assert_eq!(line["protocol"], if protocol == Protocol::Pb { "pb" } else { "ws" });
    assert_eq!(line["peer"], format!("127.0.0.1:{}", rig.master.port()));
    for message in ["vm started", "the vm ended by itself"] {
        let vm = span(entries.saying(message)?, "vm")?;
        for (field, expected) in [("builder", "build"), ("vm", "default"), ("image", "plain")] {
            assert_eq!(vm[field], expected, "{message}: {vm}");
        }
        assert_eq!(vm["slot"], 0, "{message}: {vm}");
        ensure!(vm["vm_pid"].is_u64(), "{message}: {vm}");
    }
    // What is done for a command, in the library for ssh for one, is known to be for it.
    let session = entries.saying("ssh session established")?;
    let command = span(session, "command")?;
    for (field, expected) in [("command", "vm_start"), ("builder", "build"), ("step", "start-vm")] {
        assert_eq!(command[field], expected, "{command}");
    }
    ensure!(command["command_id"].is_string(), "there is no command_id in {session}");
    assert_eq!(span(session, "vm")?["slot"], 0);
    rig.host.nothing_left()
}

/// The lines of a log.
struct Entries(Vec<Value>);

impl Entries {
    /// The first one with a message.
    fn saying(&self, message: &str) -> Result<&Value> {
        let says = |entry: &&Value| entry["fields"]["message"].as_str().is_some_and(|said| said.starts_with(message));
        self.0.iter().find(says).with_context(|| format!("nothing says {message:?} in {:#?}", self.0))
    }
}

/// The fields of the span of a name that a line is in.
fn span<'a>(entry: &'a Value, name: &str) -> Result<&'a Value> {
    let spans = entry["spans"].as_array().with_context(|| format!("{entry} is in no span"))?;
    spans.iter().find(|span| span["name"] == name).with_context(|| format!("{entry} is in no span {name:?}"))
}
