//! Whatever a master computed with the worker's basedir, variables and processors is true in the guest, whether that has the
//! host's basedir or another one.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use integration_tests::{
    Build, Guest, Master, PrivateRepository, Protocol, Rig, WITH_GUESTS, contains_all, over_both_protocols,
};
use serde_json::json;
use tempfile::TempDir;
use toml::Table;

over_both_protocols!(
    #[ignore = "long"]
    what_the_master_computed_is_true_in_the_guest
);

/// Where a guest reaches its host's loopback.
const HOST_OF_GUESTS: &str = "10.0.2.2";

/// The home of the guests' user.
const HOME: &str = "/home/buildbot";

/// A directory of the host that a guest's user can't make without `sudo`.
fn rooted_basedir() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("kvm-worker-");
    let home = std::env::var_os("HOME").map(PathBuf::from).context("there is a home")?;
    builder.tempdir_in("/var/lib").or_else(|_| builder.tempdir_in(home)).context("make a basedir")
}

fn what_the_master_computed_is_true_in_the_guest(protocol: Protocol) -> Result<()> {
    let basedir = rooted_basedir()?;
    let here = basedir.path().display().to_string();
    let repository = PrivateRepository::serve()?;
    // A 4.3.0 master sends no files over MessagePack, so keys and passwords don't arrive anywhere.
    let private = match protocol {
        Protocol::Pb => format!("private_sources({})", repository.seen_at(HOST_OF_GUESTS)?),
        Protocol::Msgpack => "[]".to_owned(),
    };
    let master = Master::plan()
        .speaking(protocol)
        .python(&format!(
            r#"from at_home import *
from buildbot_kvm import in_vm, on_host
here = {here:?}
def builder(name, *more):
    on_the_host = on_host(steps.ShellCommand(name="on the host", command=["sh", "-c", 'cd ..; pwd; echo "$0"', HERE]))
    add_builder(c, name, in_vm([*paths(), *facts(), on_the_host, *more, *{private}], image=name))
builder("same")
builder(
    "other",
    # As a master says it that has no buildbot-kvm to tell it better.
    steps.ShellCommand(
        name="host's paths",
        command="echo mapped > ../M; echo " + here + "/other/x",
        env={{"THERE": here}},
        logfiles={{"M": here + "/other/M", "lost": "/no/such/directory/L"}},
    ),
)"#
        ))
        .start()?;
    let rig = Rig::of(master, |host| {
        host.set("worker.basedir", here.as_str());
        // Once as clones, whose guest was made ready before it was frozen.
        host.image("same", Guest::build()?.with("template", protocol == Protocol::Pb));
        let other = match protocol {
            Protocol::Pb => Guest::build()?.with("guest_basedir", "/builds/of-this-guest"),
            Protocol::Msgpack => {
                host.set(
                    "profiles.rootless",
                    Table::from_iter([
                        ("base".to_owned(), "linux".into()),
                        ("basedir".to_owned(), "mkdir -p -- {directory}".into()),
                    ]),
                );
                Guest::build()?.with("profile", "rootless")
            }
        };
        host.image("other", other);
        Ok(())
    })?;
    if protocol == Protocol::Pb {
        let made = rig.host.ask(&["image", "template", "same"])?;
        ensure!(made.status.success(), "{made:?}");
    }

    let same = rig.master.run_within("same", WITH_GUESTS)?;
    is_true(&same, "same", &here, &here)?;
    ensure!(!same.step("start-vm")?.stdio().text().contains("the worker's basedir"), "{}", same.story());
    if protocol == Protocol::Pb {
        assert_eq!(same.property("vm_how"), "clone", "{}", same.story());
    }

    let other = rig.master.run_within("other", WITH_GUESTS)?;
    let (there, why) = match protocol {
        Protocol::Pb => ("/builds/of-this-guest", "as guest_basedir of its image says"),
        Protocol::Msgpack => (HOME, "where it can't be made as on the host: "),
    };
    is_true(&other, "other", &here, there)?;
    let said = format!("the worker's basedir {here} is {there} in this guest, {why}");
    contains_all(&other.step("start-vm")?.stdio().text(), &[&said])?;
    let hosts = other.step("host's paths")?;
    let warning =
        format!("WARNING: {here}, which is the worker's basedir on the host and {there} in this machine, is in ");
    contains_all(
        &hosts.stdio().header,
        &[
            &warning,
            "is in the command, the variable THERE; use relative paths",
            "log file lost: nothing to show, as there is no directory /no/such/directory\n",
        ],
    )?;
    assert_eq!(hosts.log("M").stdout, "mapped\n");

    if protocol == Protocol::Pb {
        for builder in ["same", "other"] {
            let pushed = repository.git(&["log", "--format=%s", &format!("by-{builder}")])?;
            assert_eq!(pushed, "by a build\nfirst\n");
        }
    }
    rig.finish()
}

/// Checks what a build found out about the place where its guest has it.
fn is_true(build: &Build, builder: &str, here: &str, there: &str) -> Result<()> {
    build.succeeded()?;
    let builddir = format!("{there}/{builder}");
    let paths = build.step("paths")?;
    assert_eq!(paths.stdio().stdout, format!("{builddir}\n{builddir}/ccache\n{builddir}/one:{builddir}/two\n"));
    assert_eq!(paths.log("L").stdout, "text\n");
    ensure!(!paths.stdio().header.contains("WARNING"), "{}", build.story());
    assert_eq!(build.step("workdir")?.stdio().stdout, format!("{builddir}/elsewhere/sub\n"));
    let properties = [
        ("HOME", json!(HOME)),
        ("USER", json!("buildbot")),
        ("home of the command", json!(HOME)),
        ("vm_cpus", json!(1)),
        ("vm_memory", json!(384)),
        ("vm_basedir", json!(there)),
        ("basedir", json!(here)),
        ("builddir", json!(format!("{here}/{builder}"))),
    ];
    for (name, value) in properties {
        assert_eq!(build.property(name), &value, "{name}: {}", build.story());
    }
    assert_eq!(build.step("processors")?.stdio().stdout, "1\n-j 1\n");
    let on_host = format!("{here}/{builder}\n");
    assert_eq!(build.step("on the host")?.stdio().stdout, on_host.repeat(2));
    if let Ok(left) = build.step("nothing left") {
        assert_eq!(left.stdio().stdout, "clean\n");
    }
    Ok(())
}

#[test]
fn guest_that_can_not_have_the_configured_basedir_does_not_start() -> Result<()> {
    let guest = Guest::plain()?.with("guest_basedir", "/etc/hostname/builds");
    let rig = Rig::with_guest(r#"steps.StartVM(image="plain"), steps.StopVM(),"#, guest)?;
    let build = rig.run()?;
    let text = build.step("start-vm")?.stdio().text();
    contains_all(
        &text,
        &["make /etc/hostname/builds in the guest for its builds, its guest_basedir: ", "Not a directory"],
    )?;
    rig.finish()
}

#[test]
#[ignore = "long: the whole pipeline of the demo"]
fn pipeline_of_the_example_has_a_private_repository() -> Result<()> {
    let repository = PrivateRepository::serve()?;
    let basedir = rooted_basedir()?;
    let seen = repository.seen_at(HOST_OF_GUESTS)?;
    let file = |name: &str, text: &str| -> Result<PathBuf> {
        let path = basedir.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let known_hosts = file("known_hosts", seen["known_hosts"].as_str().context("there are keys")?)?;
    let password = file("password", "any")?;
    let environment = json!({
        "KVM_DEMO_REPOSITORY": seen["ssh"],
        "KVM_DEMO_SSH_KEY": repository.key(),
        "KVM_DEMO_KNOWN_HOSTS": known_hosts,
        "KVM_DEMO_PASSWORD_FILE": password,
    });
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../contrib/examples/master.cfg");
    let master = Master::plan()
        .speaking(Protocol::Pb)
        .python(&format!(
            "import os, runpy\n\
             os.environ.update({environment})\n\
             example = runpy.run_path({example:?}, {{'basedir': '.'}})['BuildmasterConfig']\n\
             add_builder(c, 'demo', next(each.factory for each in example['builders'] if each.name == 'demo'))"
        ))
        .start()?;
    let rig = Rig::of(master, |host| {
        host.set("worker.basedir", basedir.path().join("base").display().to_string());
        host.image("debian-build", Guest::build()?.booting());
        host.image("debian-plain", Guest::plain()?.booting());
        Ok(())
    })?;
    let build = rig.master.run_within("demo", WITH_GUESTS * 2)?;
    build.succeeded()?;
    contains_all(&build.step("git")?.stdio().text(), &["ssh-key"])?;
    rig.finish()
}
