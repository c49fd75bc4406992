use std::os::unix::fs::MetadataExt;

use protocol::command::Name;

use super::*;
use crate::commands::server::{Kind, Server};
use crate::config::{Config, Overrides};

fn check_instead(host: &str, environment: &[(&str, &str)], expected: Result<&str, &str>) {
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let found = instead(Path::new(host), &environment, "no sudo".to_owned());
    match (found, expected) {
        (Ok(found), Ok(path)) => {
            let origin = Origin::Instead("no sudo".to_owned());
            assert_eq!(found, GuestBasedir { path: path.into(), origin });
        }
        (Err(error), Err(text)) => assert_eq!(error.to_string(), text),
        (found, expected) => panic!("{found:?} and not {expected:?}"),
    }
}

#[test]
fn builds_that_can_not_be_where_they_are_on_the_host_are_at_home() {
    check_instead("/srv/w", &[("HOME", "/home/ci"), ("USER", "ci")], Ok("/home/ci"));
    check_instead("/srv/w", &[("USERPROFILE", r"C:\Users\ci")], Ok("/home/buildbot"));
    check_instead("/srv/w", &[("HOME", "relative")], Ok("/home/buildbot"));
}

#[test]
fn a_home_whose_paths_could_be_the_hosts_is_none() {
    let refused = "make /home/ci/w in the guest for its builds: no sudo; set guest_basedir of the image to a directory that \
                   its user may have";
    check_instead("/home/ci/w", &[("HOME", "/home/ci")], Err(refused));
    let refused = refused.replace("/home/ci/w", "/home");
    check_instead("/home", &[("HOME", "/home/ci")], Err(&refused));
}

#[test]
fn who_has_paths_of_the_host_in_mind_is_told_only_if_they_are_wrong() {
    let check = |path: &str, origin: Origin, expected: Option<&str>| {
        let basedir = GuestBasedir { path: path.into(), origin };
        assert_eq!(basedir.notice(Path::new("/srv/w")).as_deref(), expected);
    };
    check("/srv/w", Origin::Host, None);
    check("/srv/w", Origin::Image, None);
    check(
        "/b",
        Origin::Image,
        Some("the worker's basedir /srv/w is /b in this guest, as guest_basedir of its image says"),
    );
    check(
        "/h",
        Origin::Instead("no sudo".to_owned()),
        Some("the worker's basedir /srv/w is /h in this guest, where it can't be made as on the host: no sudo"),
    );
}

fn image(more: &str) -> Image {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.toml");
    let text = format!(
        "[worker]\nname = 'w'\nmaster = 'pb://localhost:1'\npassword_file = '/p'\nbasedir = '/b'\n\
         [profiles.unable]\nbase = 'linux'\nbasedir = ''\n[images.i]\ndisk = '/d'\nuser = 'u'\nkey = '/k'\n{more}\n"
    );
    std::fs::write(&file, text).expect("write the configuration");
    let config = Config::load(Some(&file), &Overrides::default()).expect("a configuration");
    config.images[&Name::new("i").expect("a name")].clone()
}

/// What a guest has whose user's home is `/home/ci`.
async fn settled(server: &Server, image: &Image, wanted: Wanted<'_>) -> Result<GuestBasedir, String> {
    let session = server.session().await;
    let environment = vec![("HOME".to_owned(), "/home/ci".to_owned())];
    settle(&session, image, wanted, &environment).await.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn the_hosts_path_is_made_in_the_guest_whatever_tools_it_has() {
    for kind in [Kind::OpenSsh, Kind::Busybox] {
        let server = Server::start(kind);
        let path = server.path("it's a/path of/the host");
        let expected = GuestBasedir::of_host(&path);
        // As when it is made after a boot, when it is there, and when it is gone after another boot.
        for wanted in [Wanted::First(&path), Wanted::First(&path), Wanted::Again(&expected)] {
            if matches!(wanted, Wanted::Again(_)) {
                std::fs::remove_dir(&path).expect("removed");
            }
            assert_eq!(settled(&server, &image(""), wanted).await, Ok(expected.clone()));
            let made = std::fs::metadata(&path).expect("it is there");
            assert_eq!((made.is_dir(), made.mode() & 0o777), (true, 0o755));
            assert_eq!(std::fs::read_dir(&path).expect("listed").count(), 0);
        }
    }
}

#[tokio::test]
async fn a_guest_that_can_not_have_the_hosts_path_has_its_home_and_says_why() {
    let server = Server::start(Kind::OpenSsh);
    let path = server.path("log/below a file");
    let found = settled(&server, &image(""), Wanted::First(&path)).await.expect("another one");
    let Origin::Instead(why) = &found.origin else { panic!("{found:?}") };
    assert!(why.contains("Not a directory"), "{why}");
    assert_eq!(found.path, Path::new("/home/ci"));
    // It stays so.
    assert_eq!(settled(&server, &image(""), Wanted::Again(&found)).await, Ok(found));

    let found = settled(&server, &image("profile = 'unable'"), Wanted::First(&server.path("x"))).await;
    let origin = Origin::Instead("its profile has no basedir command".to_owned());
    assert_eq!(found, Ok(GuestBasedir { path: "/home/ci".into(), origin }));
    assert!(!server.path("x").exists());
}

#[tokio::test]
async fn what_the_image_says_is_made_or_refused() {
    let server = Server::start(Kind::OpenSsh);
    let (path, host) = (server.path("builds"), Path::new("/srv/w"));
    let said = |path: &Path| format!("guest_basedir = {:?}", path.display().to_string());
    let expected = GuestBasedir { path: path.clone(), origin: Origin::Image };
    assert_eq!(settled(&server, &image(&said(&path)), Wanted::First(host)).await, Ok(expected));
    assert!(path.is_dir());

    let path = server.path("log/builds");
    let refused = settled(&server, &image(&said(&path)), Wanted::First(host)).await.expect_err("it can't be");
    let begin = format!("make {} in the guest for its builds, its guest_basedir: ", path.display());
    assert!(refused.starts_with(&begin) && refused.contains("Not a directory"), "{refused}");

    // Who has no command to make it with sees to it himself.
    let unable = format!("{}\nprofile = 'unable'", said(&path));
    let expected = GuestBasedir { path, origin: Origin::Image };
    assert_eq!(settled(&server, &image(&unable), Wanted::First(host)).await, Ok(expected));
}
