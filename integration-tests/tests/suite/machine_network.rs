//! Machines that see each other, and machines that see nothing.

use std::net::TcpListener;

use anyhow::{Result, ensure};
use integration_tests::{Guest, KvmHost, Results, Rig, contains_all};

/// Two slots for machines of the image `plain`.
fn two_slots(host: &mut KvmHost) -> Result<()> {
    host.set("pool.slots", 2);
    host.image("plain", Guest::plain()?);
    Ok(())
}

#[test]
#[ignore = "long"]
fn machines_on_a_network_reach_each_other_by_name() -> Result<()> {
    let rig = Rig::with(
        r#"steps.StartVM(image="plain", vm="server", network="lan"),
           steps.StartVM(image="plain", vm="client", network="lan"),
           steps.VMShellCommand(name="serve", vm="server", command="mkdir www && head -c 8000000 /dev/urandom > www/big && md5sum < www/big && busybox httpd -p 8080 -h www"),
           steps.VMShellCommand(name="fetch", vm="client", command="busybox wget -q -O - http://server:8080/big | md5sum"),
           steps.VMShellCommand(name="back", vm="server", command="sudo busybox ping -q -c 1 client && grep kvm-worker /etc/hosts"),
           steps.VMShellCommand(name="outside", vm="client", command="grep kvm-worker /etc/hosts; ip -4 -o address | grep -o 'inet 10.*/[0-9]*'"),
           steps.StopVM(vm="client"),
           steps.StopVM(vm="server"),"#,
        two_slots,
    )?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.succeeded()?;
    let said = |step: &str| Ok::<_, anyhow::Error>(build.step(step)?.stdio().stdout);
    ensure!(said("fetch")? == said("serve")? && said("fetch")?.len() > 32, "not the same file: {}", build.story());
    let names = "10.77.0.1 server # kvm-worker\n10.77.0.2 client # kvm-worker\n";
    contains_all(&said("back")?, &["1 packets received", names])?;
    assert_eq!(said("outside")?, format!("{names}inet 10.0.2.15/24\ninet 10.77.0.2/24\n"));
    assert_eq!(
        (build.property("vm_server_address"), build.property("vm_client_address")),
        (&"10.77.0.1".into(), &"10.77.0.2".into())
    );
    rig.finish()
}

#[test]
#[ignore = "long"]
fn guest_that_cannot_be_put_on_a_network_says_why() -> Result<()> {
    let rig = Rig::with(r#"steps.StartVM(image="plain", network="lan"), steps.StopVM(),"#, |host| {
        host.set(
            "profiles.odd",
            toml::Value::Table(
                [("base".to_owned(), "linux".into()), ("network".to_owned(), "echo no card {mac} >&2; exit 1".into())]
                    .into_iter()
                    .collect(),
            ),
        );
        host.image("plain", Guest::plain()?.with("profile", "odd"));
        Ok(())
    })?;
    let build = rig.run()?;
    rig.host.slots_clean()?;
    build.ended(Results::Exception)?;
    contains_all(&build.step("start-vm")?.stdio().text(), &["configure network 'lan': no card 02:6b:76:6d:00:01"])?;
    rig.finish()
}

#[test]
#[ignore = "long"]
fn closed_guest_reaches_nothing_of_its_host() -> Result<()> {
    let service = TcpListener::bind("127.0.0.1:0")?;
    let port = service.local_addr()?.port();
    let look = format!("timeout 5 bash -c ': </dev/tcp/10.0.2.2/{port}' && echo reached || echo not reached");
    let rig = Rig::with(
        &format!(
            r#"steps.StartVM(image="plain"),
               steps.VMShellCommand(name="open", command="{look}"),
               steps.StopVM(),
               steps.StartVM(image="closed"),
               steps.VMShellCommand(name="closed", command="{look}"),
               steps.StopVM(),"#
        ),
        |host| {
            host.image("plain", Guest::plain()?);
            host.image("closed", Guest::plain()?.with("outside", "closed"));
            Ok(())
        },
    )?;
    let build = rig.run()?;
    build.succeeded()?;
    assert_eq!(build.step("open")?.stdio().stdout, "reached\n");
    assert_eq!(build.step("closed")?.stdio().stdout, "not reached\n");
    rig.finish()
}
