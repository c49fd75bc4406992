use std::ffi::OsString;
use std::time::Duration;

use process::{Limits, OutputError};
use serde_json::Value;
use thiserror::Error;

use crate::arguments::SANDBOX;
use crate::tool::tool;

/// What the QEMU at hand can do beyond what every supported one can. Found out by trying, not from its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `-sandbox` with all the denials we ask for.
    pub sandbox: bool,
    /// A virtio entropy device.
    pub rng: bool,
    /// `rom=` of a memory file (QEMU 8.2): one that is opened for reading only can be memory that its guest writes to.
    pub rom: bool,
    /// A device that tells the guest that it is not the only one that goes on from where it was: Linux 5.18 and later, built
    /// with CONFIG_VMGENID, then seeds its random numbers anew. Debian 12's kernel was seen to ("crng reseeded due to virtual
    /// machine fork"); its cloud kernel is built without.
    pub vmgenid: bool,
    /// A device by which a guest tells that its kernel has panicked. This one is on the ISA bus, which PCs have: it has no
    /// state that a frozen machine could lose, and guests since 2013 know it (Linux 3.9, `CONFIG_PVPANIC`, a module in
    /// Debian's kernels; Windows with virtio's drivers).
    pub pvpanic: bool,
}

impl Features {
    /// Returns the rights to give to the [memory file](crate::Memory::Private) of a frozen machine, the fewest with which
    /// this QEMU can open it. QEMU before 8.2 opens it for writing, though it writes nothing. With such a one no guest may
    /// have a device that hands memory back (virtio-balloon, virtio-mem): that makes holes in the file.
    pub fn memory_mode(&self) -> u32 {
        if self.rom { 0o400 } else { 0o600 }
    }
}

/// Why a QEMU can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It could not be run, or failed when asked what it can do; it says why.
    #[error(
        "{0}; install QEMU 7.2 or later (Debian: qemu-system-x86, qemu-utils) or name another in the configuration"
    )]
    Run(#[source] OutputError),
    /// It ran and what it answered makes no sense.
    #[error("{program:?} does not answer like QEMU: {answer}")]
    Answer {
        /// The program.
        program: OsString,
        /// The beginning of what it said.
        answer: String,
    },
    /// It was built without a device every machine here has.
    #[error("{program:?} has no {device}; install a QEMU that has")]
    Device {
        /// The program.
        program: OsString,
        /// The device's name.
        device: &'static str,
    },
}

/// The list of all types is some 50 KiB.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(20), max_bytes: 4 << 20 };

const QUESTIONS: &str = r#"{"execute": "qmp_capabilities"}
{"execute": "qom-list-types", "arguments": {"implements": "device", "abstract": false}, "id": "devices"}
{"execute": "qom-list-properties", "arguments": {"typename": "memory-backend-file"}, "id": "memory"}
{"execute": "quit"}
"#;

/// Devices of every machine.
const NEEDED: [&str; 2] = ["virtio-blk-pci", "virtio-net-pci"];

/// Runs a QEMU without a machine and asks what it can do. Returns its version as well.
pub(crate) async fn probe(program: &OsString) -> Result<(String, Features), ProbeError> {
    match ask(program, &["-sandbox", SANDBOX]).await {
        Ok(answers) => read(program, &answers, true),
        // Whatever else is wrong will be wrong again, and be said then.
        Err(OutputError::Failed { .. }) => {
            let answers = ask(program, &[]).await.map_err(ProbeError::Run)?;
            read(program, &answers, false)
        }
        Err(error) => Err(ProbeError::Run(error)),
    }
}

async fn ask(program: &OsString, sandbox: &[&str]) -> Result<Vec<u8>, OutputError> {
    let command = tool(program)
        .args(["-no-user-config", "-nodefaults", "-display", "none", "-machine", "none"])
        // User networking is a library a QEMU may have been built without.
        .args(["-netdev", "user,id=net0"])
        .args(["-chardev", "stdio,id=qmp", "-mon", "chardev=qmp,mode=control"])
        .args(sandbox.iter().copied())
        .stdin(QUESTIONS);
    command.output(&LIMITS).await?.into_success()
}

fn read(program: &OsString, answers: &[u8], sandbox: bool) -> Result<(String, Features), ProbeError> {
    let strange = || ProbeError::Answer {
        program: program.clone(),
        answer: String::from_utf8_lossy(&answers[..answers.len().min(200)]).into_owned(),
    };
    let messages: Vec<Value> =
        serde_json::Deserializer::from_slice(answers).into_iter().collect::<Result<_, _>>().map_err(|_| strange())?;
    let version = messages.iter().find_map(|m| version(m.get("QMP")?)).ok_or_else(strange)?;
    let names = |id: &str| {
        let list = messages.iter().find(|m| m["id"] == id)?["return"].as_array()?;
        Some(list.iter().filter_map(|each| each["name"].as_str()).collect::<Vec<_>>())
    };
    let devices = names("devices").ok_or_else(strange)?;
    let memory = names("memory").ok_or_else(strange)?;
    let has = |device: &str| devices.contains(&device);
    match NEEDED.into_iter().find(|device| !has(device)) {
        Some(device) => Err(ProbeError::Device { program: program.clone(), device }),
        None => Ok((
            version,
            Features {
                sandbox,
                rng: has("virtio-rng-pci"),
                rom: memory.contains(&"rom"),
                vmgenid: has("vmgenid"),
                pvpanic: has("pvpanic"),
            },
        )),
    }
}

fn version(greeting: &Value) -> Option<String> {
    let part = |name: &str| greeting["version"]["qemu"][name].as_u64();
    Some(format!("{}.{}.{}", part("major")?, part("minor")?, part("micro")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 9, "minor": 2, "major": 7}, "package": ""}}}"#;

    /// What a QEMU with these devices and this of a memory file answers comes out as.
    fn check(devices: &[&str], memory: &[&str], expected: Result<(&str, Features), &str>) {
        let list = |names: &[&str]| {
            let list: Vec<_> = names.iter().map(|name| format!(r#"{{"name": "{name}"}}"#)).collect();
            list.join(",")
        };
        let answers = format!(
            "{GREETING}\n{{\"return\": {{}}}}\n{{\"id\": \"devices\", \"return\": [{}]}}\n{{\"id\": \"memory\", \"return\": [{}]}}",
            list(devices),
            list(memory)
        );
        let found = read(&"qemu".into(), answers.as_bytes(), true).map_err(|error| error.to_string());
        let expected = expected.map(|(version, features)| (version.to_owned(), features)).map_err(str::to_owned);
        assert_eq!(found, expected);
    }

    const ALL: Features = Features { sandbox: true, rng: true, rom: true, vmgenid: true, pvpanic: true };

    #[test]
    fn features_come_from_what_there_is() {
        let (blk, net, rng, generation, panic) =
            ("virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "vmgenid", "pvpanic");
        check(&[blk, net, rng, generation, panic], &["readonly", "rom"], Ok(("7.2.9", ALL)));
        check(&[blk, net, generation, panic], &["rom"], Ok(("7.2.9", Features { rng: false, ..ALL })));
        check(&[blk, net, rng, panic], &["rom"], Ok(("7.2.9", Features { vmgenid: false, ..ALL })));
        check(&[blk, net, rng, generation], &["rom"], Ok(("7.2.9", Features { pvpanic: false, ..ALL })));
        check(&[blk, net, rng, generation, panic], &["readonly"], Ok(("7.2.9", Features { rom: false, ..ALL })));
        check(&[blk], &["rom"], Err("\"qemu\" has no virtio-net-pci; install a QEMU that has"));
    }

    #[test]
    fn the_memory_of_a_frozen_machine_has_the_fewest_rights_that_do() {
        let check = |rom, mode| assert_eq!(Features { rom, ..ALL }.memory_mode(), mode);
        check(true, 0o400);
        check(false, 0o600);
    }

    #[test]
    fn another_program_is_not_taken_for_qemu() {
        let error = read(&"/bin/ls".into(), b"bin etc", true).map_err(|error| error.to_string());
        assert_eq!(error, Err("\"/bin/ls\" does not answer like QEMU: bin etc".to_owned()));
    }
}
