//! A configuration as keys and texts, for people who want to see what is different in another one.
//!
//! Every struct is taken apart by name, so that a key that is added and forgotten here does not compile.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::time::Duration;

use protocol::command::Name;
use qemu::{Accel, Outside};

use super::image::KernelBoot;
use super::{Config, Connection, Control, DiskFormat, Image, Log, LogFormat, PasswordSource, Pool, Profile, Worker};

/// What a key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Text {
    Unset,
    /// It can be shown.
    Plain(String),
    /// It is a guest's or QEMU's business, and may have anything in it.
    Private(String),
}

/// Keys in their order, and what they say.
pub(super) type Keys = BTreeMap<String, Text>;

/// All keys but those of images.
pub(super) fn of(config: &Config) -> Keys {
    let Config { worker, connection, control, pool, log, images } = config;
    let mut keys = Keys::new();
    of_worker(worker, &mut |key, text| drop(keys.insert(format!("worker.{key}"), text)));
    of_connection(connection, &mut |key, text| drop(keys.insert(format!("connection.{key}"), text)));
    of_control(control, &pool.state_dir, &mut |key, text| drop(keys.insert(format!("control.{key}"), text)));
    of_pool(pool, &mut |key, text| drop(keys.insert(format!("pool.{key}"), text)));
    of_log(log, &mut |key, text| drop(keys.insert(format!("log.{key}"), text)));
    for Image { profile, .. } in images.values() {
        let prefix = format!("profiles.{}", profile.name);
        of_profile(profile, &mut |key, text| drop(keys.insert(format!("{prefix}.{key}"), text)));
    }
    keys
}

/// The keys of an image.
pub(super) fn of_image(name: &Name, image: &Image) -> Keys {
    let mut keys = Keys::new();
    image_keys(image, &mut |key, text| drop(keys.insert(format!("images.{name}.{key}"), text)));
    keys
}

type Note<'a> = dyn FnMut(&'static str, Text) + 'a;

fn of_worker(worker: &Worker, note: &mut Note<'_>) {
    let Worker { name, master, password, basedir, ca_file, delete_leftover_dirs, host_commands, drain_quiet } = worker;
    note("name", quoted(name));
    note("master", quoted(master));
    match password {
        PasswordSource::File(path) => note("password_file", path_text(path)),
        PasswordSource::Credential(name) => note("password_credential", quoted(name)),
    }
    note("basedir", path_text(basedir));
    note("ca_file", or_unset(ca_file.as_deref(), path_text));
    note("delete_leftover_dirs", plain(delete_leftover_dirs));
    note("host_commands", plain(host_commands));
    note("drain_quiet", seconds(*drain_quiet));
}

fn of_connection(connection: &Connection, note: &mut Note<'_>) {
    let Connection { connect_timeout, dead_after, retry_min, retry_max } = connection;
    note("connect_timeout", seconds(*connect_timeout));
    note("dead_after", seconds(*dead_after));
    note("retry_min", seconds(*retry_min));
    note("retry_max", seconds(*retry_max));
}

fn of_control(control: &Control, state_dir: &Path, note: &mut Note<'_>) {
    let Control { socket, group } = control;
    // Where it is unless the configuration says otherwise follows from another key.
    note("socket", if *socket == Control::default_socket(state_dir) { Text::Unset } else { path_text(socket) });
    note("group", or_unset(group.as_ref(), quoted));
}

fn of_pool(pool: &Pool, note: &mut Note<'_>) {
    let Pool {
        slots,
        ssh_port_base,
        state_dir,
        acquire_timeout,
        shutdown_timeout,
        time_to_live,
        max_hold,
        max_held,
        memory_budget_mib,
        disk_low_water_mib,
        max_copy_mib,
        warm_max_age,
        warm_max_load,
        accel,
        qemu,
        qemu_img,
    } = pool;
    note("slots", plain(slots));
    note("ssh_port_base", plain(ssh_port_base));
    note("state_dir", path_text(state_dir));
    note("acquire_timeout", seconds(*acquire_timeout));
    note("shutdown_timeout", seconds(*shutdown_timeout));
    note("time_to_live", seconds(*time_to_live));
    note("max_hold", seconds(*max_hold));
    note("max_held", plain(max_held));
    note("memory_budget_mib", or_unset(memory_budget_mib.as_ref(), plain));
    note("disk_low_water_mib", plain(disk_low_water_mib));
    note("max_copy_mib", plain(max_copy_mib));
    note("warm_max_age", seconds(*warm_max_age));
    note("warm_max_load", plain(warm_max_load));
    let accel = match accel {
        Accel::Auto => "auto",
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    };
    note("accel", quoted(&accel));
    note("qemu", path_text(qemu));
    note("qemu_img", path_text(qemu_img));
}

fn of_log(log: &Log, note: &mut Note<'_>) {
    let Log { filter, format } = log;
    note("filter", quoted(filter));
    let format = match format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
        LogFormat::Journald => "journald",
    };
    note("format", quoted(&format));
}

fn of_profile(profile: &Profile, note: &mut Note<'_>) {
    let Profile { name: _, dialect, environment, shutdown, reboot, clock, network, hosts, basedir, prepare, restore } =
        profile;
    note("shell and processes", private(dialect));
    note("environment", private(environment));
    note("shutdown", private(shutdown));
    note("reboot", private(reboot));
    note("clock", private(clock));
    note("network", private(network));
    note("hosts", private(hosts));
    note("basedir", private(basedir));
    note("prepare", private(prepare));
    note("restore", private(restore));
}

fn image_keys(image: &Image, note: &mut Note<'_>) {
    let Image {
        disk,
        format,
        boot,
        machine,
        cpu,
        cpus,
        memory_mib,
        user,
        key,
        host_key,
        ssh_port,
        profile,
        shutdown,
        outside,
        keep_generations,
        boot_timeout,
        template,
        warm,
        warm_up,
        post_restore,
        fresh_machine_id,
        fresh_host_name,
        overlay_limit_mib,
        qemu_args,
        guest_basedir,
    } = image;
    note("disk", path_text(disk));
    let format = match format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    };
    note("format", quoted(&format));
    let boot = boot.as_ref();
    note("kernel", or_unset(boot, |KernelBoot { kernel, .. }| path_text(kernel)));
    note("initrd", or_unset(boot.and_then(|boot| boot.initrd.as_deref()), path_text));
    note("append", or_unset(boot, |KernelBoot { append, .. }| private(append)));
    note("machine", quoted(machine));
    note("cpu", or_unset(cpu.as_ref(), quoted));
    note("cpus", plain(cpus));
    note("memory_mib", plain(memory_mib));
    note("user", quoted(user));
    note("key", path_text(key));
    note("host_key", or_unset(host_key.as_ref(), quoted));
    note("ssh_port", plain(ssh_port));
    note("profile", quoted(&profile.name));
    note("shutdown", or_unset(shutdown.as_ref(), private));
    let outside = match outside {
        Outside::Open => "open",
        Outside::Closed => "closed",
    };
    note("outside", quoted(&outside));
    note("keep_generations", plain(keep_generations));
    note("boot_timeout", seconds(*boot_timeout));
    note("template", plain(template));
    note("warm", plain(warm));
    note("warm_up", or_unset(warm_up.as_ref(), private));
    note("post_restore", or_unset(post_restore.as_ref(), private));
    note("fresh_machine_id", plain(fresh_machine_id));
    note("fresh_host_name", plain(fresh_host_name));
    note("overlay_limit_mib", or_unset(overlay_limit_mib.as_ref(), plain));
    note("qemu_args", private(qemu_args));
    note("guest_basedir", or_unset(guest_basedir.as_deref(), path_text));
}

fn plain(value: &impl Display) -> Text {
    Text::Plain(value.to_string())
}

/// As it is written in a file.
fn quoted(value: &(impl Display + ?Sized)) -> Text {
    Text::Plain(format!("{:?}", value.to_string()))
}

fn path_text(path: &Path) -> Text {
    quoted(&path.display())
}

fn seconds(time: Duration) -> Text {
    Text::Plain(time.as_secs_f64().to_string())
}

fn private(value: &impl Debug) -> Text {
    Text::Private(format!("{value:?}"))
}

fn or_unset<T: ?Sized>(value: Option<&T>, text: impl FnOnce(&T) -> Text) -> Text {
    value.map_or(Text::Unset, text)
}
