//! What a template is made of. It is of use only as long as all of it is the same.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Image;
use crate::pool::generations::Ground;
use crate::pool::guest_basedir;
use crate::pool::identity::DiskIdentity;
use crate::pool::machine::{Shape, description};
use crate::pool::slot::Slot;

/// Everything that a template depends on, by name, as text for people that differs when the thing does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::pool) struct Inputs(BTreeMap<String, String>);

/// Which inputs: a digest of them, as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::pool) struct Key(String);

impl Inputs {
    /// Those of a template of an image that would be made now. Reads what the files are that it depends on, not what is in
    /// them.
    ///
    /// # Errors
    /// One of the files is not there.
    pub(super) fn of(
        image: &Image,
        ground: &Ground,
        basedir: &Path,
        qemu: &qemu::Qemu,
        accelerator: qemu::Accelerator,
        processor: Option<&Processor>,
    ) -> anyhow::Result<Self> {
        let mut inputs = BTreeMap::new();
        let mut note = |name: &str, text: String| drop(inputs.insert(name.to_owned(), text));
        let program = qemu.program().context("look at qemu")?;
        let (file, size, modified) = (program.file.display(), program.size, program.modified);
        note("kvm-worker", format!("{} sha256 {}", env!("CARGO_PKG_VERSION"), this_program()?));
        note("qemu", format!("{} {file} ({size} bytes, modified {modified})", program.version));
        let shape = Shape::fresh(image);
        let nowhere = Slot::new(0, 0, Path::new("/"));
        let machine = description(image, shape, &nowhere, Path::new("/"), accelerator, qemu::Memory::Own);
        let blueprint = machine.blueprint(qemu.features());
        // As it would be written in a program: what is not UTF-8 stays distinct, and blanks do not run together.
        note("arguments", blueprint.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" "));
        note("generation", ground.number.to_string());
        note("disk", DiskIdentity::of(&ground.base.file)?.to_string());
        note("base", ground.root_identity().to_string());
        if let Some(boot) = &image.boot {
            note("kernel", DiskIdentity::of(&boot.kernel)?.to_string());
            if let Some(initrd) = &boot.initrd {
                note("initrd", DiskIdentity::of(initrd)?.to_string());
            }
        }
        if let Some(Processor(processor)) = processor
            && accelerator == qemu::Accelerator::Kvm
            && is_like_host(image.cpu.as_deref())
        {
            note("processor", processor.clone());
        }
        note("login", format!("{} at port {}", image.user, image.ssh_port));
        // It is made before the guest is frozen.
        note("basedir", guest_basedir::intended(image, basedir));
        note("profile", format!("{:?}", image.profile));
        note("warm_up", image.warm_up.clone().unwrap_or_default());
        // Making a clone new is tried before the guest is frozen, and leaves its marks there.
        let fresh = [(image.fresh_host_name, "host name"), (image.fresh_machine_id, "machine id")];
        let fresh: Vec<_> = fresh.into_iter().filter_map(|(is, what)| is.then_some(what)).collect();
        if !fresh.is_empty() {
            note("fresh", fresh.join(", "));
        }
        let files: Vec<_> = media(&image.qemu_args).filter_map(|file| DiskIdentity::of(file).ok()).collect();
        if !files.is_empty() {
            note("media", files.iter().map(DiskIdentity::to_string).collect::<Vec<_>>().join(", "));
        }
        Ok(Inputs(inputs))
    }

    /// Which they are.
    pub(super) fn key(&self) -> Key {
        let mut digest = Sha256::new();
        for (name, text) in &self.0 {
            // With lengths, so that no two sets of names and texts are the same bytes.
            for part in [name, text] {
                digest.update((part.len() as u64).to_le_bytes());
                digest.update(part);
            }
        }
        Key(hexadecimal(digest))
    }

    /// What is not as it was, by name. Both texts are there, too, unless they are long or have commands and arguments in
    /// them, which are nobody's business.
    pub(super) fn changes_since(&self, earlier: &Inputs) -> String {
        let names = self.0.keys().chain(earlier.0.keys().filter(|name| !self.0.contains_key(*name)));
        let changed = names.filter(|name| self.0.get(*name) != earlier.0.get(*name)).map(|name| {
            let text = |inputs: &Inputs| inputs.0.get(name).map_or("nothing", String::as_str).to_owned();
            let (was, is) = (text(earlier), text(self));
            let private = PRIVATE.contains(&name.as_str());
            if private || was.len() + is.len() > MAX_SHOWN {
                name.clone()
            } else {
                format!("{name} (was {was}, is {is})")
            }
        });
        changed.collect::<Vec<_>>().join(", ")
    }

    #[cfg(test)]
    pub(super) fn for_tests(inputs: &[(&str, &str)]) -> Self {
        Inputs(inputs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }
}

/// The digest of the program that this process runs. Two builds of one release may ready a guest for being frozen in
/// different ways, and write down different things of it. It is read once, which blocks for some milliseconds.
///
/// # Errors
/// It can't be read.
pub(super) fn this_program() -> anyhow::Result<&'static str> {
    static DIGEST: LazyLock<io::Result<String>> = LazyLock::new(|| {
        // The file itself, even if another one has its name by now.
        let mut program = File::open("/proc/self/exe")?;
        let (mut digest, mut block) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            match program.read(&mut block)? {
                0 => return Ok(hexadecimal(digest)),
                length => digest.update(&block[..length]),
            }
        }
    });
    DIGEST.as_ref().map(String::as_str).map_err(|error| anyhow!("read this program: {error}"))
}

fn hexadecimal(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a configuration may have secrets in.
const PRIVATE: [&str; 3] = ["arguments", "profile", "warm_up"];

/// The longest two texts that a log line shows.
const MAX_SHOWN: usize = 400;

impl Key {
    /// All of its digits.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// For people, who need no more than tells two apart.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// What of the host's processor a guest may have come to know, which has to be there when it is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pool) struct Processor(String);

impl Processor {
    /// That of this host, and the kernel that lends it.
    pub(super) fn of_host() -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
        Ok(Processor(format!(
            "{}; Linux {}",
            first(&read("/proc/cpuinfo")?),
            read("/proc/sys/kernel/osrelease")?.trim()
        )))
    }
}

/// The files among QEMU's arguments that a guest can only read, such as a seed for its first boot. What it can write is
/// another file after every boot, and can't be told apart so.
fn media(arguments: &[String]) -> impl Iterator<Item = &Path> {
    let before = [""].into_iter().chain(arguments.iter().map(String::as_str));
    let words = before.zip(arguments).flat_map(|(before, word)| {
        let read_only = word.split(',').any(|part| matches!(part, "media=cdrom" | "readonly=on" | "read-only=on"));
        let named = word.split(',').filter_map(|part| part.split_once('=')).map(|(_, value)| value);
        let drive = named.filter(move |_| read_only);
        drive.chain((before == "-cdrom").then_some(word.as_str()))
    });
    words.filter(|word| word.starts_with('/')).map(Path::new)
}

/// Whether a processor model of QEMU's is made of what the host's has. By default it is.
fn is_like_host(cpu: Option<&str>) -> bool {
    let model = cpu.and_then(|cpu| cpu.split(',').next());
    model.is_none_or(|model| matches!(model, "host" | "max"))
}

/// What says which processor it is (proc(5)).
const TELLING: [&str; 7] = ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"];

/// The telling lines of the first processor in `/proc/cpuinfo`.
fn first(cpuinfo: &str) -> String {
    let lines = cpuinfo.lines().take_while(|line| !line.trim().is_empty());
    let fields = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value.trim()));
    let telling = fields.filter(|(name, _)| TELLING.contains(name));
    telling.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_inputs_apart() {
        let check = |one: &[(&str, &str)], other: &[(&str, &str)], same: bool| {
            let [one, other] = [one, other].map(|inputs| Inputs::for_tests(inputs).key());
            assert_eq!(one == other, same, "{one} {other}");
            assert_eq!(one.as_str().len(), 64);
        };
        check(&[("qemu", "10.0.2"), ("disk", "/d")], &[("disk", "/d"), ("qemu", "10.0.2")], true);
        check(&[("qemu", "10.0.2")], &[("qemu", "10.0.3")], false);
        check(&[("qemu", "10.0.2")], &[("qemu", "10.0.2"), ("disk", "")], false);
        check(&[("ab", "c")], &[("a", "bc")], false);
    }

    #[test]
    fn a_program_is_known_by_what_is_in_it() {
        let file = std::env::current_exe().and_then(std::fs::read).expect("this program can be read");
        assert_eq!(this_program().expect("it can be read"), hexadecimal(Sha256::new_with_prefix(file)));
    }

    #[test]
    fn what_changed_is_named() {
        let check = |earlier: &[(&str, &str)], now: &[(&str, &str)], expected: &str| {
            let [earlier, now] = [earlier, now].map(Inputs::for_tests);
            assert_eq!(now.changes_since(&earlier), expected);
        };
        check(&[("disk", "/d")], &[("disk", "/d")], "");
        check(
            &[("disk", "/d"), ("generation", "1"), ("qemu", "7.2")],
            &[("disk", "/d"), ("generation", "2"), ("qemu", "10.0")],
            "generation (was 1, is 2), qemu (was 7.2, is 10.0)",
        );
        check(&[("kernel", "/k")], &[("processor", "x")], "processor (was nothing, is x), kernel (was /k, is nothing)");
        check(&[("warm_up", "a password")], &[("warm_up", "another")], "warm_up");
        let long = "x".repeat(MAX_SHOWN);
        check(&[("arguments", "y")], &[("arguments", &long)], "arguments");
    }

    #[test]
    fn media_are_files_that_a_guest_only_reads() {
        let check = |arguments: &[&str], expected: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(media(&arguments).collect::<Vec<_>>(), expected.iter().map(Path::new).collect::<Vec<_>>());
        };
        check(
            &["-drive", "file=/i/seed.iso,media=cdrom,if=virtio", "-cdrom", "/i/more.iso"],
            &["/i/seed.iso", "/i/more.iso"],
        );
        check(&["-drive", "if=virtio,format=raw,readonly=on,file=/i/seed"], &["/i/seed"]);
        check(&["-blockdev", "driver=file,node-name=seed,filename=/i/seed,read-only=on"], &["/i/seed"]);
        check(&["-drive", "file=/i/scratch", "-serial", "file:/var/log/guest", "-cdrom", "relative"], &[]);
    }

    #[test]
    fn a_processor_matters_where_the_guest_sees_it() {
        let check = |cpu, expected| assert_eq!(is_like_host(cpu), expected, "{cpu:?}");
        check(None, true);
        check(Some("host"), true);
        check(Some("host,-avx512f"), true);
        check(Some("max"), true);
        check(Some("qemu64"), false);
        check(Some("Skylake-Server,+x"), false);
    }

    #[test]
    fn a_processor_is_the_first_one_without_what_changes_by_itself() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: A CPU\n\
                       stepping\t: 8\nmicrocode\t: 0x2b\ncpu MHz\t\t: 2100.1\nflags\t\t: fpu sse\n\nprocessor\t: 1\nvendor_id\t: X\n";
        let expected = "vendor_id GenuineIntel, cpu family 6, model 143, model name A CPU, stepping 8, microcode 0x2b, flags fpu sse";
        assert_eq!(first(cpuinfo), expected);
    }
}
