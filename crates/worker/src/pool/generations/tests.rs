use std::fs;
use std::time::Duration;

use super::*;
use crate::config::{Config, Overrides};

const SOON: Duration = Duration::from_secs(60);

/// A state directory, a base disk and an image of each name on it.
struct Site {
    directory: tempfile::TempDir,
    images: BTreeMap<Name, Arc<Image>>,
    qemu: qemu::Qemu,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

impl Site {
    async fn new(names: &[&str], keep_generations: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().join("base.img");
        fs::File::create(&base).and_then(|file| file.set_len(1 << 20)).expect("made");
        let mut text =
            "[worker]\nname = \"w\"\nmaster = \"pb://h\"\npassword_file = \"/p\"\nbasedir = \"/b\"\n".to_owned();
        for name in names {
            text += &format!(
                "[images.{name}]\ndisk = {base:?}\nformat = \"raw\"\nuser = \"u\"\nkey = \"/k\"\nkeep_generations = {keep_generations}\n"
            );
        }
        let file = directory.path().join("worker.toml");
        fs::write(&file, text).expect("written");
        let config = Config::load(Some(&file), &Overrides::default()).expect("it is right");
        let images = config.images.into_iter().map(|(name, image)| (name, Arc::new(image))).collect();
        let qemu = qemu::Qemu::probe(&config.pool.qemu, &config.pool.qemu_img).await.expect("qemu is installed");
        Site { directory, images, qemu }
    }

    fn open(&self) -> Generations {
        Generations::open(self.directory.path(), &self.images, &CoreTasks::new().0)
    }

    /// What a machine of an image would stand on.
    fn current(&self, generations: &Generations, image: &str) -> anyhow::Result<Ground> {
        generations.current(&name(image), &self.images[&name(image)])
    }

    /// Starts and stops a machine, so to say, and saves its disk.
    async fn save(&self, generations: &Generations, from: &str, image: &str) -> Published {
        let ground = self.current(generations, from).expect("there is one");
        self.save_on(generations, &ground, image).await
    }

    async fn save_on(&self, generations: &Generations, ground: &Ground, image: &str) -> Published {
        let disk = tempfile::NamedTempFile::new_in(&self.directory).expect("made").into_temp_path();
        self.qemu.create_overlay(&ground.base, &disk).await.expect("created");
        generations.save(&self.qemu, &name(image), &disk, ground, saver(), SOON).await.expect("saved")
    }

    /// What there is of an image, by name.
    fn files(&self, image: &str) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("generations").join(image)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    async fn becomes(&self, image: &str, expected: &[&str]) {
        let wait = async {
            while self.files(image) != expected {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(SOON, wait).await;
        assert!(waited.is_ok(), "not {expected:?} but {:?}", self.files(image));
    }
}

fn saver() -> Saver<'static> {
    Saver { builder: "nightly", build: Some(17), host_key: "ssh-ed25519 AAAA".to_owned() }
}

/// Their numbers, the current one negative.
fn numbers(generations: &Generations, image: &str) -> Vec<i64> {
    let list = generations.list(&name(image)).expect("there is one");
    list.iter().map(|generation| i64::from(generation.number) * if generation.current { -1 } else { 1 }).collect()
}

#[tokio::test]
async fn what_is_saved_is_what_machines_start_from_and_is_there_after_a_restart() {
    let site = Site::new(&["a", "b"], 3).await;
    let generations = site.open();
    assert_eq!(numbers(&generations, "a"), [-1]);
    let first = site.current(&generations, "a").expect("there is one");
    assert_eq!((first.number, first.base.format, &first.host_key), (1, qemu::Format::Raw, &None));
    assert_eq!(site.save(&generations, "a", "a").await, Published { number: 2, current: true });
    assert_eq!(site.save(&generations, "a", "a").await, Published { number: 3, current: true });
    assert_eq!(site.save(&generations, "a", "b").await, Published { number: 2, current: true });
    for generations in [&generations, &site.open()] {
        assert_eq!(numbers(generations, "a"), [1, 2, -3]);
        let ground = site.current(generations, "a").expect("there is one");
        assert_eq!(ground.base.file, site.directory.path().join("generations/a/3/disk.qcow2"));
        assert_eq!(ground.host_key.as_deref(), Some("ssh-ed25519 AAAA"));
        let disk = site.qemu.disk(&ground.base.file).await.expect("understood");
        assert_eq!(disk.backing, Some(site.directory.path().join("base.img")), "it stands on no other generation");
        let list = generations.list(&name("b")).expect("there is one");
        let manifest = list[1].manifest.clone().expect("it was saved").expect("it is whole");
        assert_eq!((manifest.from_image.as_str(), manifest.from, manifest.build), ("a", 3, Some(17)));
    }
    assert_eq!(site.files("a"), ["2", "3"]);
}

#[tokio::test]
async fn builds_that_save_at_once_get_numbers_one_after_the_other() {
    let site = Site::new(&["a"], 10).await;
    let generations = site.open();
    let ground = site.current(&generations, "a").expect("there is one");
    let saves = (0..4).map(|_| site.save_on(&generations, &ground, "a"));
    let mut published: Vec<_> = futures_util::future::join_all(saves).await.iter().map(|saved| saved.number).collect();
    published.sort_unstable();
    assert_eq!(published, [2, 3, 4, 5]);
    assert_eq!(site.files("a"), ["2", "3", "4", "5"]);
}

#[tokio::test]
async fn a_save_that_is_given_up_publishes_nothing_and_leaves_nothing() {
    let site = Site::new(&["a"], 3).await;
    let generations = site.open();
    let ground = site.current(&generations, "a").expect("there is one");
    {
        let mut saving = Box::pin(site.save_on(&generations, &ground, "a"));
        while site.files("a").is_empty() {
            assert!(futures_util::poll!(&mut saving).is_pending());
            tokio::task::yield_now().await;
        }
    }
    site.becomes("a", &[]).await;
    assert_eq!(numbers(&generations, "a"), [-1]);
    // One that fails does neither.
    let missing = site.directory.path().join("none.qcow2");
    let failed = generations.save(&site.qemu, &name("a"), &missing, &ground, saver(), SOON).await.unwrap_err();
    assert!(format!("{failed:#}").contains("none.qcow2"), "{failed:#}");
    site.becomes("a", &[]).await;
    assert_eq!(site.save(&generations, "a", "a").await.number, 2);
}

#[tokio::test]
async fn a_rollback_lasts_and_numbers_go_on() {
    let site = Site::new(&["a"], 10).await;
    let generations = site.open();
    for _ in 0..3 {
        site.save(&generations, "a", "a").await;
    }
    let from_newest = site.current(&generations, "a").expect("there is one");
    assert_eq!(generations.roll_back(&name("a"), None).expect("there is one before"), 3);
    assert_eq!(numbers(&generations, "a"), [1, 2, -3, 4]);
    assert_eq!(numbers(&site.open(), "a"), [1, 2, -3, 4]);
    // What was gone back from does not come back with a build that had begun before.
    let late = site.save_on(&generations, &from_newest, "a").await;
    assert_eq!(late, Published { number: 5, current: false });
    assert_eq!(numbers(&site.open(), "a"), [1, 2, -3, 4, 5]);
    assert_eq!(site.save(&generations, "a", "a").await, Published { number: 6, current: true });
    assert_eq!(numbers(&site.open(), "a"), [1, 2, 3, 4, 5, -6]);
    assert_eq!(generations.roll_back(&name("a"), Some(1)).expect("it is always there"), 1);
    assert_eq!(numbers(&site.open(), "a"), [-1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn old_generations_go_when_nothing_stands_on_them() {
    let site = Site::new(&["a"], 1).await;
    let generations = site.open();
    site.save(&generations, "a", "a").await;
    let machine = site.current(&generations, "a").expect("there is one");
    site.save(&generations, "a", "a").await;
    // A disk that persists is made on the third.
    let disks = disks::Disks::new(disks::directory(site.directory.path()));
    let lock = disks.lock(&name("a"), &name("vm")).await;
    assert_eq!(lock.open(&site.qemu, &generations, &site.images[&name("a")]).await.expect("made").number, 3);
    site.save(&generations, "a", "a").await;
    site.save(&generations, "a", "a").await;
    site.becomes("a", &["2", "3", "5"]).await;
    drop(machine);
    site.becomes("a", &["3", "5"]).await;
    assert_eq!(lock.open(&site.qemu, &generations, &site.images[&name("a")]).await.expect("it is there").number, 3);
    fs::remove_dir_all(disks::directory(site.directory.path())).expect("removed");
    drop(site.open());
    site.becomes("a", &["5"]).await;
    assert_eq!(site.save(&generations, "a", "a").await.number, 6);
}

#[tokio::test]
async fn what_is_damaged_is_said_and_never_replaced_by_another() {
    let site = Site::new(&["a"], 3).await;
    site.save(&site.open(), "a", "a").await;
    site.save(&site.open(), "a", "a").await;
    let path = |name: &str| site.directory.path().join("generations/a").join(name);
    let check = |expected: &str| {
        let error = format!("{:#}", site.current(&site.open(), "a").unwrap_err());
        assert!(error.contains(expected) && error.contains("kvm-worker image rollback"), "{error}");
    };
    fs::create_dir(path("new-7")).expect("made");
    fs::create_dir(path("gone-2")).expect("made");
    fs::write(path("current"), "nonsense").expect("written");
    check("current has no generation's number in it");
    assert_eq!(site.files("a"), ["2", "3", "current"]);
    fs::write(path("current"), "9").expect("written");
    check("generation 9 of image 'a': there is none of that number");
    fs::remove_file(path("current")).expect("removed");
    fs::File::options().write(true).open(path("3/disk.qcow2")).and_then(|file| file.set_len(7)).expect("cut");
    check("disk.qcow2 has 7 bytes and not ");
    fs::remove_file(path("3/disk.qcow2")).expect("removed");
    check("No such file");
    fs::write(path("3/manifest.json"), "{}").expect("written");
    check("missing field");
    let generations = site.open();
    assert_eq!(numbers(&generations, "a"), [1, 2, -3]);
    assert_eq!(generations.roll_back(&name("a"), None).expect("there is one"), 2);
    assert_eq!(site.current(&generations, "a").expect("it is whole").number, 2);
    // A base that was replaced takes all that was saved on it along, but not the disk itself.
    fs::write(site.directory.path().join("base.img"), "another disk").expect("written");
    check("was replaced or changed since");
    assert_eq!(generations.roll_back(&name("a"), Some(1)).expect("it is there"), 1);
    assert_eq!(site.current(&generations, "a").expect("it is the new one").number, 1);
}

#[tokio::test]
async fn a_template_keeps_a_generation_and_is_no_machine() {
    let site = Site::new(&["a"], 1).await;
    let generations = site.open();
    site.save(&generations, "a", "a").await;
    let machines = || -> Vec<usize> {
        let list = generations.list(&name("a")).expect("there is one");
        list.iter().map(|generation| generation.machines).collect()
    };
    let template = site.current(&generations, "a").expect("there is one").of_template();
    assert_eq!(machines(), [0, 0]);
    let clone = site.current(&generations, "a").expect("there is one");
    assert_eq!(machines(), [0, 1]);
    drop(clone);
    // Nothing but the template keeps the second one then.
    site.save(&generations, "a", "a").await;
    assert_eq!((numbers(&generations, "a"), site.files("a")), (vec![1, 2, -3], vec!["2".to_owned(), "3".to_owned()]));
    drop(template);
    site.becomes("a", &["3"]).await;
}

#[tokio::test]
async fn what_an_image_has_stays_while_it_is_not_configured() {
    let site = Site::new(&["a"], 1).await;
    let generations = site.open();
    site.save(&generations, "a", "a").await;
    let on_second = site.current(&generations, "a").expect("there is one");
    site.save(&generations, "a", "a").await;
    let on_third = site.current(&generations, "a").expect("there is one");
    site.save(&generations, "a", "a").await;
    generations.follow(&BTreeMap::new());
    drop(on_third);
    // It is tidied in the order of asking, and nothing of it was touched before.
    generations.follow(&site.images);
    site.becomes("a", &["2", "4"]).await;
    drop(on_second);
    site.becomes("a", &["4"]).await;
}

#[tokio::test]
async fn what_is_removed_of_an_image_while_it_is_not_configured_is_not_missed() {
    let site = Site::new(&["a"], 3).await;
    let generations = site.open();
    site.save(&generations, "a", "a").await;
    let machine = site.current(&generations, "a").expect("there is one");
    site.save(&generations, "a", "a").await;
    generations.follow(&BTreeMap::new());
    assert_eq!(generations.in_use(), [site.directory.path().join("generations/a/2")]);
    fs::remove_dir_all(site.directory.path().join("generations/a/3")).expect("removed");
    generations.follow(&site.images);
    assert_eq!(numbers(&generations, "a"), [1, -2]);
    drop(machine);
    assert_eq!(generations.in_use(), Vec::<PathBuf>::new());
}
