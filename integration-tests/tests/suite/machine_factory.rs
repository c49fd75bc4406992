//! A factory of Buildbot's own steps, unchanged, on the host and in a machine: it must make no difference.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration_tests::{
    Build, Guest, Log, Master, Protocol, Repository, Results, Rig, WITH_GUESTS, over_both_protocols,
};
use regex::Regex;
use serde_json::Value;

over_both_protocols!(
    #[ignore = "long"]
    same_factory_gives_the_same_on_the_host_and_in_a_machine
);

/// The variables that the factory sets. What else there is, and its values, is each place's own.
const VARIABLES: [&str; 4] = ["GIVEN", "JOINED", "EMPTY", "BOTH"];

/// Properties that tell the builds apart, or the machine's own.
const OWN_PROPERTIES: [&str; 5] = ["builderid", "buildername", "buildnumber", "scheduler", "workername"];

/// The directory of the master that the factory uploads to.
const UPLOADS: &str = "got";

fn same_factory_gives_the_same_on_the_host_and_in_a_machine(protocol: Protocol) -> Result<()> {
    let repository = Repository::serve()?;
    let master = Master::plan()
        .speaking(protocol)
        .python(&format!(
            "import buildbot_kvm\n\
             from everything import everything\n\
             factory = everything({}, {:?})\n\
             add_builder(c, 'host', factory, workerbuilddir='work')\n\
             add_builder(c, 'guest', buildbot_kvm.in_vm(factory, image='build'), workerbuilddir='work')",
            repository.port(),
            protocol.name(),
        ))
        .start()?;
    let rig = Rig::of(master, |host| {
        host.image("build", Guest::build()?.booting());
        Ok(())
    })?;
    let basedir = rig.host.basedir().display().to_string();
    let on_host = Outcome::of(&rig, "host", &basedir, protocol)?;
    let in_guest = Outcome::of(&rig, "guest", &basedir, protocol)?;
    rig.host.slots_clean()?;
    ensure!(on_host.results == Some(Results::Success), "on the host: {:#?}", on_host.build_story);
    let differences = on_host.differences(&in_guest);
    ensure!(
        differences.is_empty(),
        "there are differences:\n{}\nin the machine:\n{}",
        differences.join("\n"),
        in_guest.build_story
    );
    rig.finish()
}

/// All that is left of a build, with what may differ made the same.
struct Outcome {
    results: Option<Results>,
    steps: Vec<Step>,
    properties: BTreeMap<String, Value>,
    files: BTreeMap<String, File>,
    build_story: String,
}

#[derive(Debug, PartialEq)]
struct Step {
    name: String,
    results: Option<Results>,
    state_string: String,
    logs: BTreeMap<String, Log>,
}

/// A file that was uploaded.
#[derive(Debug, PartialEq)]
struct File {
    mode: u32,
    /// Seconds since 1970, where the step was to keep it.
    mtime: Option<i64>,
    content: Vec<u8>,
}

impl Outcome {
    /// Runs a builder, and takes what it uploads out of the next one's way.
    fn of(rig: &Rig, builder: &str, basedir: &str, protocol: Protocol) -> Result<Outcome> {
        let build = rig.master.run_within(builder, WITH_GUESTS)?;
        let place = Place::new(basedir)?;
        let uploads = rig.master.path(UPLOADS);
        let mut files = BTreeMap::new();
        if uploads.exists() {
            collect(&uploads, "", &mut files)?;
            if protocol == Protocol::Msgpack {
                // Over it, the master sets no times.
                files.values_mut().for_each(|file| file.mtime = None);
            }
            fs::remove_dir_all(&uploads).context("remove the uploads of the first build")?;
        }
        Ok(Outcome {
            results: build.results,
            steps: place.steps(&build),
            // The master knows the worker's own directories, wherever the build runs.
            properties: Place::new(&rig.host.basedir().display().to_string())?.properties(&build),
            files,
            build_story: build.story(),
        })
    }

    /// One entry for each thing that is not the same.
    fn differences(&self, other: &Outcome) -> Vec<String> {
        let mut found = Vec::new();
        let names = |outcome: &Outcome| outcome.steps.iter().map(|step| step.name.clone()).collect::<Vec<_>>();
        unequal("results", &self.results, &other.results, &mut found);
        unequal("names of steps", &names(self), &names(other), &mut found);
        unequal("properties", &self.properties, &other.properties, &mut found);
        for (here, there) in self.steps.iter().zip(&other.steps) {
            let name = &here.name;
            unequal(&format!("results of {name}"), &here.results, &there.results, &mut found);
            unequal(&format!("summary of {name}"), &here.state_string, &there.state_string, &mut found);
            unequal_maps(&format!("logs of {name}"), &here.logs, &there.logs, &mut found);
        }
        unequal_maps("uploads", &self.files, &other.files, &mut found);
        found
    }
}

fn unequal<T: PartialEq + std::fmt::Debug>(what: &str, here: &T, there: &T, found: &mut Vec<String>) {
    if here != there {
        let shown = |value: &T| format!("{value:?}").chars().take(4000).collect::<String>();
        found.push(format!("{what}:\n    on the host:    {}\n    in the machine: {}", shown(here), shown(there)));
    }
}

fn unequal_maps<T: PartialEq + std::fmt::Debug>(
    what: &str,
    here: &BTreeMap<String, T>,
    there: &BTreeMap<String, T>,
    found: &mut Vec<String>,
) {
    unequal(what, &here.keys().collect::<Vec<_>>(), &there.keys().collect::<Vec<_>>(), found);
    for (name, value) in here {
        if let Some(other) = there.get(name) {
            unequal(&format!("{what}, {name:?}"), value, other, found);
        }
    }
}

/// Where a build ran, and what of its texts is that place's own.
struct Place {
    basedir: String,
    elapsed: Regex,
    progress: Regex,
    /// Git's version, and where it found the repository: the one address of the host that a place has.
    git: Regex,
}

impl Place {
    fn new(basedir: &str) -> Result<Place> {
        Ok(Place {
            basedir: basedir.to_owned(),
            elapsed: Regex::new(r"elapsedTime=[0-9.]+")?,
            git: Regex::new(r"git version [0-9.]+|git://(10\.0\.2\.2|127\.0\.0\.1):")?,
            // Git's progress has percentages and speeds as time has it.
            progress: Regex::new(
                r"^(remote: )?(Enumerating|Counting|Compressing|Receiving|Resolving|Unpacking|Total) ",
            )?,
        })
    }

    fn steps(&self, build: &Build) -> Vec<Step> {
        let machines_own = |name: &str| name == "start-vm" || name == "stop-vm";
        let steps = build.steps.iter().filter(|step| !machines_own(&step.name));
        steps
            .map(|step| Step {
                name: step.name.clone(),
                results: step.results,
                state_string: self.text(&step.state_string),
                logs: step.logs.iter().map(|(name, log)| (name.clone(), self.log(log))).collect(),
            })
            .collect()
    }

    fn properties(&self, build: &Build) -> BTreeMap<String, Value> {
        let mut properties = build.properties();
        properties.retain(|name, _| !name.starts_with("vm_") && !OWN_PROPERTIES.contains(&name.as_str()));
        for value in properties.values_mut() {
            if let Some(text) = value.as_str() {
                *value = self.text(text).into();
            }
        }
        properties
    }

    fn log(&self, log: &Log) -> Log {
        let mut header = String::new();
        let mut in_environment = false;
        for line in self.text(&log.header).lines() {
            let variable = line.strip_prefix("  ").filter(|_| in_environment);
            in_environment = line == " environment:" || variable.is_some();
            let is_ours = |line: &str| VARIABLES.iter().any(|name| line.starts_with(&format!("{name}=")));
            if variable.is_none_or(is_ours) {
                header += &format!("{line}\n");
            }
        }
        Log { stdout: self.text(&log.stdout), stderr: self.text(&log.stderr), header }
    }

    fn text(&self, text: &str) -> String {
        let text = text.replace(&self.basedir, "BASEDIR");
        let text = self.elapsed.replace_all(&text, "elapsedTime=SOME");
        let text = self.git.replace_all(&text, "GIT ");
        text.split_inclusive('\n').filter(|line| !self.progress.is_match(line)).collect()
    }
}

/// All files below a directory, by their relative paths.
fn collect(directory: &Path, prefix: &str, files: &mut BTreeMap<String, File>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            collect(&entry.path(), &format!("{name}/"), files)?;
            continue;
        }
        let keeps_times = name == "old" || name.starts_with("stamped/");
        let content = fs::read(entry.path()).with_context(|| format!("read {name}"))?;
        let mode = metadata.permissions().mode() & 0o7777;
        files.insert(name, File { mode, mtime: keeps_times.then(|| metadata.mtime()), content });
    }
    Ok(())
}
