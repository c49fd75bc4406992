//! From a text to settings and a report.

mod files;

use super::*;

/// The password of every worker here; nothing but its own file may hold it.
const PASSWORD: &str = "pass word";

const IMPORT: &str = "from buildbot_worker.bot import Worker\n";

/// What a text leads to: the configuration's lines, and the report's under the letters of their headings; or an error.
fn outcome(source: &str) -> Vec<String> {
    let directory = Path::new("/srv/w");
    let tac_file = directory.join("buildbot.tac");
    let translated = tac::parse(&tac_file, source).map_err(anyhow::Error::from).and_then(|tac| {
        let call = only(tac.workers)?;
        Ok(translate::translate(directory, call, &tac.effects))
    });
    let lines: Vec<String> = match translated {
        Ok((settings, report)) => {
            let toml = settings.toml(&tac_file, Path::new("/p"));
            let toml = toml.lines().filter(|line| line.contains(" = ")).map(str::to_owned);
            let parts = [("different", report.different), ("dropped", report.dropped), ("by hand", report.by_hand)];
            let report = parts
                .into_iter()
                .flat_map(|(part, lines)| lines.into_iter().map(move |line| format!("{part}: {line}")))
                .filter(|line| !line.starts_with("different: the log goes"));
            toml.chain(report).collect()
        }
        Err(error) => vec![format!("{error:#}")],
    };
    assert!(lines.iter().all(|line| !line.contains(PASSWORD)), "{lines:?}");
    lines
}

/// What an argument, or statements before the call, change.
#[track_caller]
fn check(statements: &str, argument: &str, expected: &[&str]) {
    let call = |more: &str| format!("Worker('h', 9989, 'n', '{PASSWORD}', '/b'{more})\n");
    let plain = outcome(&format!("{IMPORT}{}", call("")));
    let got = outcome(&format!("{IMPORT}{statements}{}", call(argument)));
    let news: Vec<_> = got.iter().filter(|line| !plain.contains(line)).collect();
    assert_eq!(news, expected, "{statements}{argument}");
}

/// What a name given by an expression is, or what is said of it.
#[track_caller]
fn check_value(statements: &str, expression: &str, expected: Result<&str, &str>) {
    let got = outcome(&format!("{IMPORT}{statements}\nWorker('h', 9989, {expression}, '{PASSWORD}', '/b')\n"));
    match expected {
        Ok(name) => assert!(got.contains(&format!("name = \"{name}\"")), "{statements} {expression}: {got:?}"),
        Err(why) => assert_eq!(
            got.iter().find(|line| line.starts_with("by hand: worker.name")).map(String::as_str),
            Some(
                format!("by hand: worker.name: buildbot.tac:{why}; set it to the name that the master knows").as_str()
            ),
            "{statements} {expression}",
        ),
    }
}

/// What the master's address becomes, by the arguments of a call.
#[track_caller]
fn check_master(arguments: &str, expected: Result<&str, &str>) {
    let got = outcome(&format!("{IMPORT}Worker(name='n', passwd='{PASSWORD}', basedir='/b', {arguments})\n"));
    let line = match expected {
        Ok(url) => format!("master = \"{url}\""),
        Err(why) => format!("by hand: worker.master: {why}; set it to \"pb://HOST:PORT\", or pbs://, ws:// or wss://"),
    };
    assert!(got.contains(&line), "{arguments}: {got:#?}");
}

#[test]
fn a_plain_call_needs_nothing_else() {
    let expected = ["name = \"n\"", "master = \"pb://h:9989\"", "password_file = \"/p\"", "basedir = \"/b\""];
    assert_eq!(outcome(&format!("{IMPORT}Worker('h', 9989, 'n', '{PASSWORD}', '/b')\n")), expected);
}

#[test]
fn values_are_worked_out_where_that_is_certain() {
    check_value("", "'a'", Ok("a"));
    check_value("", "'a' \"b\" r'c'", Ok("abc"));
    check_value("n = ('a' +\n  'b')  # comment", "n", Ok("ab"));
    check_value("n = 'a'", "n", Ok("a"));
    check_value("n = m = 'a'", "n", Ok("a"));
    check_value("n, m = 'a', 'b'", "n + '-' + m", Ok("a-b"));
    check_value("n: str = 'a'", "n", Ok("a"));
    check_value("n = 'a'; n = 'b'", "n", Ok("b"));
    check_value("n = 'a\\\nb'", "n", Ok("ab"));
    check_value("n = 'a'\nif n == 'a':\n  n = 'b'\nelse:\n  n = 'c'", "n", Ok("b"));
    check_value("n = 'a'\nif n != 'a':\n  n = 'b'\n  if x:\n    n = 'd'\nelif n == 'a': n = 'c'", "n", Ok("c"));
    check_value("n = 'a'\nif n == 'b':\n  Worker()\n  n = 'b'", "n", Ok("a"));
    check_value("import os", "os.path.abspath(os.path.dirname(__file__))", Ok("/srv/w"));
    check_value("from os import path as p", "p.join('/a', 'b', p.normpath('../c'))", Ok("/a/b/../c"));
    check_value(
        "import os.path",
        "os.path.dirname('/a/b/') + os.path.dirname('//') + os.path.dirname('b')",
        Ok("/a/b//"),
    );
    check_value("from os.path import (abspath,\n  dirname)", "abspath('x/../y')", Ok("/srv/w/y"));
}

#[test]
fn what_only_running_would_tell_is_left_to_a_person() {
    let check = |statements: &str, expression: &str, why: &str| check_value(statements, expression, Err(why));
    check("import os", "os.environ['NAME']", "3: the worker's name comes from the environment");
    check("import os\nn = os.getenv('NAME')", "n", "3: the worker's name comes from the environment");
    check(
        "from os import environ as e\nn = e.get('NAME', 'n')",
        "n",
        "3: the worker's name comes from the environment",
    );
    check("n = open('/etc/name').read().strip()", "n", "2: the worker's name is read from another file");
    check("import socket\nn = socket.gethostname()", "n", "3: the worker's name is what a call returns");
    check("n = f'{x}'", "n", "2: the worker's name is put together when the file runs");
    check("n = 'a' if x else 'b'", "n", "2: the worker's name is an expression, not a value");
    check("n = '%s' % 'a'", "n", "2: the worker's name is an expression, not a value");
    check("n = 'a'\nn += 'b'", "n", "3: the worker's name is changed step by step");
    check("n = 'a'\nif x:\n  n = 'b'", "n", "4: the worker's name is set inside a block");
    check("for n in ('a', 'b'): pass", "n", "2: the worker's name is set inside a block");
    check("with open('x') as n:\n  pass", "n", "2: the worker's name is set inside a block");
    check("def n():\n  return 'n'", "n()", "2: the worker's name is set inside a block");
    check("", "unset", "3: the worker's name is a name that is not set before");
    check("", "None", "3: the worker's name is not a text");
    check("", "''", "3: the worker's name is empty");
    check("", "'a:b'", "3: the worker's name has a colon, which the login cannot carry");
    check("n = ('a', 'b')[0]", "n", "2: the worker's name is an expression, not a value");
}

#[test]
fn addresses_follow_host_port_tls_and_protocol() {
    check_master("buildmaster_host='h', port=1", Ok("pb://h:1"));
    check_master("buildmaster_host='h', port='9989'", Ok("pb://h:9989"));
    check_master("buildmaster_host='2001:db8::1', port=1, useTls=True", Ok("pbs://[2001:db8::1]:1"));
    check_master("buildmaster_host='h', port=1, useTls=0, protocol='pb'", Ok("pb://h:1"));
    check_master("buildmaster_host='h', port=1, protocol='msgpack_experimental_v7'", Ok("ws://h:1"));
    check_master(
        "buildmaster_host='h', port=1, useTls=1, protocol='msgpack_experimental_v7', path='ci'",
        Ok("wss://h:1/ci"),
    );
    check_master("buildmaster_host=None, port=None, connection_string='tls:h:1'", Ok("pbs://h:1"));
    check_master("buildmaster_host=None, port=None, connection_string='ssl:host=h:port=1'", Ok("pbs://h:1"));
    check_master("protocol='msgpack_experimental_v7', connection_string='tcp:h:port=1'", Ok("ws://h:1"));
    check_master(
        "buildmaster_host='h', port=0",
        Err("buildbot.tac:2: the master's port is not a number from 1 to 65535"),
    );
    check_master("buildmaster_host='h'", Err("buildbot.tac: the master's port is missing"));
    check_master(
        "buildmaster_host='a b', port=1",
        Err("buildbot.tac:2: the master's host is not the name or the address of a host"),
    );
    check_master(
        "buildmaster_host='h', port=1, useTls=x()",
        Err("buildbot.tac:2: useTls is a name that is not set before"),
    );
    check_master(
        "buildmaster_host='h', port=1, protocol='null'",
        Err("buildbot.tac:2: the protocol is neither pb nor msgpack_experimental_v7"),
    );
    check_master(
        "connection_string='unix:/x'",
        Err("buildbot.tac:2: the connection string is a UNIX socket, which kvm-worker does not connect to"),
    );
    check_master("*arguments", Err("buildbot.tac: the master's host is missing"));
}

#[test]
fn settings_have_another_name_or_a_remedy() {
    check(
        "",
        ", keepalive=600",
        &[
            "different: keepalive = 600 (buildbot.tac:2): the master is asked for a sign of life every 40 s, and a line that is silent for 120 s is made anew (connection.dead_after = 120, its default)",
        ],
    );
    check(
        "",
        ", 10 + 5",
        &[
            "different: keepalive = 15 (buildbot.tac:2): the master is asked for a sign of life every 40 s, and a line that is silent for 120 s is made anew (connection.dead_after = 120, its default); if a firewall forgets idle connections sooner, set it to 45, but a master that is busy for so long loses its builds then",
        ],
    );
    check("", ", keepalive=None", &[]);
    check(
        "k = 9\n",
        ", keepalive=k()",
        &[
            "by hand: connection.dead_after: buildbot.tac:2: keepalive is what a call returns; the key is left at its default",
        ],
    );
    check(
        "",
        ", maxdelay=300",
        &[
            "different: maxdelay = 300 (buildbot.tac:2): written by create-worker, but not used by Buildbot 4.3, which waits for a minute at most; so does connection.retry_max = 60, its default",
        ],
    );
    check("", ", maxdelay=30", &["retry_max = 30", "different: maxdelay (buildbot.tac:2): connection.retry_max = 30"]);
    check(
        "",
        ", maxdelay=10000",
        &["retry_max = 3600", "different: maxdelay (buildbot.tac:2): connection.retry_max = 3600"],
    );
    check("", ", delete_leftover_dirs=1", &["delete_leftover_dirs = true"]);
    check("", ", delete_leftover_dirs=False", &[]);
    check(
        "",
        ", umask=022",
        &[
            "dropped: umask = 0o22 (buildbot.tac:2): set UMask=0022 in the systemd unit, or umask 0022 in what starts kvm-worker",
        ],
    );
    check(
        "",
        ", numcpus=4",
        &[
            "dropped: numcpus = 4 (buildbot.tac:2): the master is told how many processors kvm-worker may use; CPUAffinity= in the systemd unit lowers that",
        ],
    );
    check(
        "",
        ", allow_shutdown='file'",
        &[
            "dropped: allow_shutdown = \"file\" (buildbot.tac:2): no SIGHUP and no shutdown.stamp here; SIGUSR1 lets the builds finish first, and so does a graceful shutdown on the master's page",
        ],
    );
    check(
        "",
        ", maxRetries=5, umask=None, numcpus=None, allow_shutdown=None",
        &["dropped: maxRetries = 5 (buildbot.tac:2): kvm-worker tries to connect until it is told to stop"],
    );
    check("", ", unicode_encoding='UTF-8', keepaliveTimeout=3", &[]);
    check(
        "",
        ", unicode_encoding='latin-1'",
        &["dropped: unicode_encoding = \"latin-1\" (buildbot.tac:2): text is UTF-8 here, as it is by default there"],
    );
    check(
        "",
        ", None, None, None, 0o22",
        &["dropped: buildbot.tac:2: argument 9 has no name; see what it means in that release of Buildbot"],
    );
    check("", ", colour='blue'", &["dropped: buildbot.tac:2: import does not know what \"colour\" is"]);
    check("", ", **more", &["dropped: buildbot.tac:2: arguments come from elsewhere; see what they are"]);
    check(
        "",
        ", proxy_connection_string='tcp:proxy:3128'",
        &[
            "by hand: worker.master: buildbot.tac:2: kvm-worker does not go through a proxy; where it has to, run a tunnel, such as `socat TCP-LISTEN:9989,bind=127.0.0.1,fork,reuseaddr PROXY:proxy:h:9989,proxyport=3128`, and let worker.master name its near end",
        ],
    );
}

#[test]
fn statements_that_do_something_are_told() {
    check(
        "import os\nos.environ['PATH'] = '/opt/bin'\n",
        "",
        &["dropped: buildbot.tac:3: set the variable with Environment= in the systemd unit"],
    );
    check(
        "from os import environ\nenviron.update(A='b')\n",
        "",
        &["dropped: buildbot.tac:3: set the variable with Environment= in the systemd unit"],
    );
    check(
        "import os\nos.umask(0o22)\nos.nice(5)\n",
        "",
        &[
            "dropped: buildbot.tac:3: set UMask= in the systemd unit",
            "dropped: buildbot.tac:4: set Nice= in the systemd unit",
        ],
    );
    check(
        "manhole.setServiceParent(application)\n",
        "",
        &[
            "dropped: buildbot.tac:2: \"manhole.setServiceParent\" is more than a setting; see whether builds need what it does",
        ],
    );
    check(
        "from twisted.application import service\na = service.Application('x', uid=7)\n",
        "",
        &[
            "dropped: buildbot.tac:3: start kvm-worker as that user and group, with User= and Group= in the systemd unit",
        ],
    );
    check("'''A text.'''\nimport sys\nx = sys.argv\nprint 'x'\nif x == 1:\n  pass\n", "", &[]);
    check(
        "a ? b\n",
        "",
        &["dropped: buildbot.tac:2: \"a\" is more than a setting; see whether builds need what it does"],
    );
    let got = outcome(&format!("{IMPORT}{}Worker('h', 1, 'n', 'p', '/b')", "f()\n".repeat(23)));
    assert_eq!(got.last().unwrap(), "dropped: buildbot.tac: 3 more statements that do something of their own");
}

#[test]
fn the_worker_is_found_or_the_error_says_what_to_do() {
    let check = |source: &str, expected: &str| assert_eq!(outcome(source), [expected], "{source}");
    const NONE: &str = "no call of Worker(...) from buildbot_worker.bot is found in it; begin with `kvm-worker print-config` and set name, master and password_file by hand";
    check("", NONE);
    check("x = 'Worker(1)'  # Worker(2)", NONE);
    check("from buildbot_worker.bot import LocalWorker\nLocalWorker('n', '/b')", NONE);
    check(
        "import buildbot_worker.bot as b\nb.Worker('h', 1, 'n', 'p', '/b', 0)\nif x: b.Worker()",
        "it makes several workers (lines 2, 3), and a kvm-worker is one; copy it for each, with one call in each copy",
    );
    assert!(outcome("from buildbot_worker.bot import *\nWorker('h', 1, 'n', 'p', '/b')").len() > 1);
    check("x = 'never closed\n", "line 1: a string is never closed");
    check("x = 1\ny = (1,\n", "line 2: a bracket is never closed");
    check("x = (1]\n", "line 1: a bracket closes what was not opened");
}

#[test]
fn an_editor_on_another_system_changes_nothing() {
    let text = include_str!("testdata/4.3.0-every-option.tac");
    assert_eq!(outcome(&format!("\u{feff}{}", text.replace('\n', "\r\n"))), outcome(text));
}

/// Before 0.9 the class had another name, and so had a variable; the call was the same.
#[test]
fn other_names_for_the_class_and_the_variables_are_fine() {
    let source = "from buildbot.bot import OldWorker as W\nwho = 'n'\nusepty = 0\n\
                  s = W('h', 9989, who, 'pass word', '/b', 600, usepty, umask=None)\ns.setServiceParent(application)\n";
    let got = outcome(source);
    assert_eq!(got[..4], ["name = \"n\"", "master = \"pb://h:9989\"", "password_file = \"/p\"", "basedir = \"/b\""]);
    assert_eq!(
        got[5..],
        ["dropped: buildbot.tac:3: argument 7 has no name; see what it means in that release of Buildbot"]
    );
}

#[test]
fn a_worker_in_a_block_is_taken_with_a_remark() {
    let got = outcome(&format!("{IMPORT}try:\n  s = Worker('h', 1, 'n', 'p', '/b')\nexcept E: raise\n"));
    assert!(
        got.contains(
            &"different: buildbot.tac:3: the worker is made in a block that may not run; taken as if it ran".to_owned()
        ),
        "{got:?}"
    );
}

#[test]
fn hostile_texts_cost_little() {
    let check = |statements: &str, why: &str| {
        let got = outcome(&format!("{IMPORT}{statements}\nWorker('h', 1, n, '{PASSWORD}', '/b')\n"));
        assert!(got.iter().any(|line| line.contains(&format!("the worker's name {why}"))), "{why}: {got:?}");
    };
    check(&format!("n = 'aaaaaaaa'\n{}", "n = n + n\n".repeat(1000)), "is longer than 4096 bytes");
    check(&format!("n = {}'a'{}", "(".repeat(10_000), ")".repeat(10_000)), "is nested too deeply");
    check(&format!("n = {}'a'{}", "f(".repeat(10_000), ")".repeat(10_000)), "is a name that is not set before");
    check(&format!("import os\nn = os{}", ".path".repeat(10_000)), "is a part of something else");
    check(&format!("n = {}1", "-".repeat(60_000)), "is an expression, not a value");
    let blocks: String = (0..300).map(|depth| format!("{}if x:\n", " ".repeat(depth))).collect();
    check(&blocks, "is a name that is not set before");
}

#[test]
fn numbers_end_where_they_end() {
    let check = |number: &str, why: &str| {
        check_value(&format!("n = {number}"), "n", Err(&format!("2: the worker's name {why}")));
    };
    check("-9223372036854775807 - 1", "is not a text");
    check("9223372036854775807 + 1", "is too large a number");
    check("-(-9223372036854775807 - 1)", "is too large a number");
    check("99999999999999999999", "is not a whole number");
    check("1.5", "is not a whole number");
    check("09", "is not a whole number");
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_strange(words in proptest::collection::vec(proptest::sample::select(WORDS.as_slice()), 0..60)) {
        outcome(&format!("{IMPORT}{}", words.concat()));
    }
}

/// What strange texts are made of.
const WORDS: [&str; 39] = [
    "Worker", "os", ".path", ".join", "import ", "from ", "as ", "if ", "else", "elif ", "for ", "in ", "def ", "x",
    "y", "=", "==", "+=", "+", "-", "*", "**", "(", ")", "[", "]", "{", "}", ",", ":", ";", "\n", "\n  ", "\t", "\\\n",
    "'a'", "\"", "'''", "07é",
];
