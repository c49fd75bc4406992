use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::template::{DISK, Frozen, MEMORY, STATE, publish};
use super::*;
use crate::config::{Config, Overrides};
use crate::core_tasks::CoreTasks;
use crate::pool::GuestBasedir;
use crate::pool::Hypervisor;
use crate::pool::published::Unfinished;

const SOON: Duration = Duration::from_secs(60);

/// A state directory, a base disk and images on it.
struct Site {
    directory: tempfile::TempDir,
    images: BTreeMap<Name, Arc<Image>>,
    hypervisor: Hypervisor,
}

fn image() -> Name {
    Name::new("a").expect("a name")
}

impl Site {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().join("base.img");
        fs::File::create(&base).and_then(|file| file.set_len(1 << 20)).expect("made");
        let text = format!(
            "[worker]\nname = \"w\"\nmaster = \"pb://h\"\npassword_file = \"/p\"\nbasedir = \"/b\"\n\
             [images.a]\ndisk = {base:?}\nformat = \"raw\"\nuser = \"u\"\nkey = \"/k\"\ntemplate = true\n"
        );
        let file = directory.path().join("worker.toml");
        fs::write(&file, text).expect("written");
        let config = Config::load(Some(&file), &Overrides::default()).expect("it is right");
        let images = config.images.into_iter().map(|(name, image)| (name, Arc::new(image))).collect();
        let qemu = qemu::Qemu::probe(&config.pool.qemu, &config.pool.qemu_img).await.expect("qemu is installed");
        let hypervisor = Hypervisor { qemu, accelerator: qemu::Accelerator::Tcg };
        Site { directory, images, hypervisor }
    }

    /// Starts, so to say, a worker.
    async fn open(&self) -> (Generations, Templates) {
        let generations = Generations::open(self.directory.path(), &self.images, &CoreTasks::new().0);
        let templates = Templates::new(self.directory.path(), Path::new("/srv/w"));
        templates.begin(&self.images, &generations, &self.hypervisor).await;
        (generations, templates)
    }

    /// Publishes what could be a template, were there something in its files. Returns its name.
    async fn publish(&self, generations: &Generations, templates: &Templates) -> String {
        let configured = &self.images[&image()];
        let (ground, inputs) =
            templates.inputs(&image(), configured, generations, &self.hypervisor).expect("it is known");
        let parent = templates.parent(&image());
        let unfinished = Unfinished::begin(&parent).expect("begun");
        let path = |name| unfinished.path().join(name);
        fs::File::create(path(MEMORY)).and_then(|file| file.set_len(1 << 20)).expect("made");
        fs::write(path(STATE), "state").expect("written");
        self.hypervisor.qemu.create_overlay(&ground.base, &path(DISK)).await.expect("created");
        let frozen = Frozen {
            inputs,
            generation: ground.number,
            took: 5.5,
            host_key: String::new(),
            basedir: GuestBasedir::of_host(Path::new("/srv/w")),
            memory_mode: 0o400,
        };
        publish(unfinished, &parent, frozen).expect("published").0
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("templates/a")).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    async fn becomes(&self, expected: &[&str]) {
        let wait = async {
            while self.names() != expected {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(SOON, wait).await;
        assert!(waited.is_ok(), "not {expected:?} but {:?}", self.names());
    }

    fn path(&self, name: &str, file: &str) -> PathBuf {
        self.directory.path().join("templates/a").join(name).join(file)
    }
}

/// The template that a machine would be cloned from, or why it would boot.
fn offered(site: &Site, generations: &Generations, templates: &Templates) -> Result<Arc<Template>, String> {
    match templates
        .offer(&image(), &site.images[&image()], generations, &site.hypervisor)
        .expect("the image has templates")
    {
        Offer::Clone(template, _) => Ok(template),
        Offer::Boot(why) => Err(why),
    }
}

#[tokio::test]
async fn all_that_is_seen_in_a_clone_makes_another_template() {
    let site = Site::new().await;
    let (generations, templates) = site.open().await;
    let seed = site.directory.path().join("seed.iso");
    fs::write(&seed, "one").expect("written");
    let key = |change: &dyn Fn(&mut Image)| {
        let mut configured = Image::clone(&site.images[&image()]);
        change(&mut configured);
        templates.inputs(&image(), &configured, &generations, &site.hypervisor).expect("it is known").1.key()
    };
    let as_it_is = key(&|_| {});
    assert_eq!(key(&|image| image.boot_timeout *= 2), as_it_is);
    assert_ne!(key(&|image| image.warm_up = Some("true".to_owned())), as_it_is);
    assert_ne!(key(&|image| image.memory_mib *= 2), as_it_is);
    // The host name and the machine id that were tried before the freeze are in every clone.
    let (host_name, machine_id) = (key(&|it| it.fresh_host_name = true), key(&|it| it.fresh_machine_id = true));
    assert!(host_name != as_it_is && machine_id != as_it_is && host_name != machine_id);
    // A medium is another when it was replaced, although its name is the same.
    let cdrom = |image: &mut Image| image.qemu_args = vec!["-cdrom".to_owned(), seed.display().to_string()];
    let earlier = key(&cdrom);
    assert_eq!(key(&cdrom), earlier);
    fs::write(&seed, "another").expect("written");
    assert_ne!(key(&cdrom), earlier);
}

#[tokio::test]
async fn a_template_is_found_again_until_what_it_is_made_of_changes() {
    let site = Site::new().await;
    let (generations, templates) = site.open().await;
    let absent = "there is no template of generation 1 yet; one is going to be made";
    assert_eq!(offered(&site, &generations, &templates).map(drop), Err(absent.to_owned()));
    let name = site.publish(&generations, &templates).await;
    for (file, mode) in [("", 0o700), (MEMORY, 0o400), (STATE, 0o400), (DISK, 0o400)] {
        let rights = fs::metadata(site.path(&name, file)).expect("it is there").permissions().mode();
        assert_eq!(rights & 0o777, mode, "{file}");
    }
    // What a crash left beside it.
    fs::create_dir(site.path("new-7", "")).expect("made");

    let (generations, templates) = site.open().await;
    let template = offered(&site, &generations, &templates).expect("it is found");
    assert_eq!((template.manifest.took, site.names()), (5.5, vec![name.clone()]));
    let overlay = site.directory.path().join("overlay.qcow2");
    template.overlay(&overlay).expect("made");
    let disk = site.hypervisor.qemu.disk(&overlay).await.expect("it is one");
    assert_eq!(disk.virtual_size, 1 << 20);

    fs::write(site.directory.path().join("base.img"), vec![1; 2 << 20]).expect("written");
    assert_eq!(offered(&site, &generations, &templates).map(drop), Err(absent.to_owned()));
    assert!(!templates.is_current(&template));
    // A clone of it lives.
    assert_eq!(site.names(), [name]);
    drop(template);
    site.becomes(&[]).await;
}

#[tokio::test]
async fn what_a_later_run_can_not_use_is_removed_at_its_start() {
    let site = Site::new().await;
    let (generations, templates) = site.open().await;
    let check = async |spoil: &dyn Fn(&str)| {
        let name = site.publish(&generations, &templates).await;
        spoil(&name);
        let (generations, templates) = site.open().await;
        assert!(offered(&site, &generations, &templates).is_err());
        assert_eq!(site.names(), Vec::<String>::new());
    };
    check(&|name| fs::remove_file(site.path(name, STATE)).expect("removed")).await;
    check(&|name| {
        fs::remove_file(site.path(name, MEMORY)).expect("removed");
        fs::write(site.path(name, MEMORY), "short").expect("written");
    })
    .await;
    check(&|name| fs::write(site.path(name, "manifest.json"), "{").expect("written")).await;
    check(&|name| fs::write(site.path(name, "bad"), "a clone failed").expect("written")).await;
    check(&|_| fs::write(site.directory.path().join("base.img"), vec![1; 3 << 20]).expect("written")).await;
    // An image that has none any more.
    site.publish(&generations, &templates).await;
    let none = BTreeMap::new();
    Templates::new(site.directory.path(), Path::new("/srv/w")).begin(&none, &generations, &site.hypervisor).await;
    assert!(!site.directory.path().join("templates/a").exists());
}

#[tokio::test]
async fn a_bad_template_is_not_used_again_and_goes_with_its_last_clone() {
    let site = Site::new().await;
    let (generations, templates) = site.open().await;
    let name = site.publish(&generations, &templates).await;
    let (generations, templates) = site.open().await;
    let template = offered(&site, &generations, &templates).expect("it is found");
    templates.failed(&template, "qemu said no; its console's last lines:\nLinux");
    let why = offered(&site, &generations, &templates).expect_err("it is bad");
    assert!(why.starts_with("its template failed and is made again in ") && why.ends_with(": qemu said no"), "{why}");
    // Another one of the same key beside it.
    let second = site.publish(&generations, &templates).await;
    assert_eq!((second.clone(), site.names()), (format!("{name}.2"), vec![name, second.clone()]));
    drop(template);
    site.becomes(&[&second]).await;
}

#[tokio::test]
async fn a_template_goes_when_its_image_has_none_any_more_and_does_not_come_back_with_it() {
    let site = Site::new().await;
    let (generations, templates) = site.open().await;
    let name = site.publish(&generations, &templates).await;
    let (generations, templates) = site.open().await;
    let template = offered(&site, &generations, &templates).expect("it is found");
    templates.follow(&BTreeMap::new());
    assert!(templates.offer(&image(), &site.images[&image()], &generations, &site.hypervisor).is_none());
    assert!(!templates.is_current(&template) && !templates.has(&image()));
    // A clone of it lives.
    assert_eq!(site.names(), std::slice::from_ref(&name));
    templates.follow(&site.images);
    let absent = "there is no template of generation 1 yet; one is going to be made";
    assert_eq!(offered(&site, &generations, &templates).map(drop), Err(absent.to_owned()));
    let second = site.publish(&generations, &templates).await;
    drop(template);
    site.becomes(&[&second]).await;
}

#[tokio::test]
async fn a_template_stays_if_its_image_changes_in_what_it_is_not_made_of() {
    let mut site = Site::new().await;
    let (generations, templates) = site.open().await;
    site.publish(&generations, &templates).await;
    let (generations, templates) = site.open().await;
    let template = offered(&site, &generations, &templates).expect("it is found");
    let old = site.images.clone();
    let mut changed = Image::clone(&old[&image()]);
    changed.keep_generations += 1;
    site.images.insert(image(), Arc::new(changed));
    templates.follow(&site.images);
    assert!(Arc::ptr_eq(&template, &offered(&site, &generations, &templates).expect("it is of use")));
    // A machine that was begun before is not made of what it may not go with.
    let offer = templates.offer(&image(), &old[&image()], &generations, &site.hypervisor);
    assert!(matches!(offer, Some(Offer::Boot(_))), "{offer:?}");
    let mut changed = Image::clone(&old[&image()]);
    changed.memory_mib += 64;
    site.images.insert(image(), Arc::new(changed));
    templates.follow(&site.images);
    assert!(offered(&site, &generations, &templates).is_err());
}

#[tokio::test]
async fn the_place_where_templates_are_made_is_had_by_one_at_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let templates = Templates::new(directory.path(), Path::new("/srv/w"));
    let wanted = templates.way_wanted.subscribe();
    let making = templates.place.lock().await;
    let mut clearing = Box::pin(templates.clear_place());
    assert!(futures_util::poll!(&mut clearing).is_pending());
    assert!(*wanted.borrow());
    drop(making);
    let place = clearing.await;
    assert!(!*wanted.borrow() && templates.place.try_lock().is_err());
    drop(place);
    // One who gives up wants it no more.
    let making = templates.place.lock().await;
    let mut clearing = Box::pin(templates.clear_place());
    assert!(futures_util::poll!(&mut clearing).is_pending());
    drop(clearing);
    assert!(!*wanted.borrow());
    drop(making);
}
