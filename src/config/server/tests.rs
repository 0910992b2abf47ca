use std::path::Path;

use proptest::prelude::*;
use tokio_postgres::config::SslMode as WireSslMode;

use super::*;
use crate::config::tests::{check_mistakes, parse, run, run_with};

#[test]
fn a_uri_wins_and_flags_fill_in() {
    let (config, warnings) = run_with(
        &["-pg-uri=postgres://me@db/?sslmode=require", "-pg-host=x", "-pg-password=hush", "-pg-database=d"],
        &[],
    );
    let server = config.postgres.server;
    assert_eq!(server.get_hosts(), [Host::Tcp("db".to_owned())]);
    assert_eq!(server.get_ports(), [5432]);
    assert_eq!((server.get_user(), server.get_dbname()), (Some("me"), Some("d")));
    assert_eq!(server.get_password(), Some(b"hush".as_slice()));
    assert_eq!(config.postgres.ssl_mode, SslMode::Require);
    assert_eq!(server.get_ssl_mode(), WireSslMode::Require);
    assert_eq!(warnings, ["-pg-host has no effect: -pg-uri says otherwise"]);
}

#[track_caller]
fn check_uri(uri: &str, mode: SslMode, root_cert: Option<&str>, user: &str, password: &str) {
    let postgres = run(&["-pg-uri", uri]).postgres;
    assert_eq!((postgres.ssl_mode, postgres.ssl_root_cert), (mode, root_cert.map(PathBuf::from)), "{uri}");
    assert_eq!(postgres.server.get_user(), Some(user), "{uri}");
    assert_eq!(postgres.server.get_password(), Some(password.as_bytes()), "{uri}");
    assert_eq!(postgres.server.get_application_name(), Some("app"), "{uri}");
}

#[test]
fn sslmode_and_sslrootcert_are_taken_out_of_uris() {
    let full = SslMode::VerifyFull;
    check_uri(
        "postgres://u:p%40%3f?x@h/d?sslmode=verify-full&application_name=app&sslrootcert=%2Fa%20b.pem",
        full,
        Some("/a b.pem"),
        "u",
        "p@??x",
    );
    check_uri("postgresql://u:p@h?application_name=app&sslmode=allow", SslMode::Prefer, None, "u", "p");
    check_uri("postgres://u:p@h?application_name=app", SslMode::Disable, None, "u", "p");
    check_uri(
        r"sslmode = verify-full user=u password='a sslmode=disable \'x\\' sslrootcert='/a b.pem' application_name=app",
        full,
        Some("/a b.pem"),
        "u",
        r"a sslmode=disable 'x\",
    );
    check_uri(r"user=u password=p\ q application_name=app sslmode='verify-ca'", SslMode::VerifyCa, None, "u", "p q");
}

#[test]
fn the_lock_session_inherits_what_its_uri_leaves_out() {
    let postgres = run(&["-pg-uri=postgres://u:p@pooler:6432/d", "-pg-lock-uri=host=primary port=5433"]).postgres;
    assert_eq!(postgres.lock_server.get_hosts(), [Host::Tcp("primary".to_owned())]);
    assert_eq!(postgres.lock_server.get_ports(), [5433]);
    assert_eq!(postgres.lock_server.get_user(), Some("u"));
    assert_eq!(postgres.lock_server.get_password(), Some(b"p".as_slice()));
    assert_eq!(postgres.lock_server.get_dbname(), Some("d"));
    assert_eq!(postgres.server.get_hosts(), [Host::Tcp("pooler".to_owned())]);
    let other_database = run(&["-pg-host=/run/pg", "-pg-lock-uri=dbname=x"]).postgres;
    assert_eq!(other_database.lock_server.get_hosts(), [Host::Unix(PathBuf::from("/run/pg"))]);
    assert_eq!(other_database.lock_server.get_dbname(), Some("x"));
}

#[test]
fn a_pooler_without_tls_beside_a_primary_with_it() {
    let uri = "-pg-lock-uri=postgres://primary/?sslmode=verify-full&sslrootcert=/ca.pem";
    let postgres = run(&[uri]).postgres;
    assert_eq!(postgres.ssl_mode, SslMode::VerifyFull);
    assert_eq!(postgres.ssl_root_cert.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(postgres.server.get_ssl_mode(), WireSslMode::Disable);
    assert_eq!(postgres.lock_server.get_ssl_mode(), WireSslMode::Require);
    check_mistakes(
        &[uri, "-pg-ssl-mode=require"],
        &["-pg-lock-uri: sslmode must be disable or that of the other sessions"],
    );
    check_mistakes(
        &[uri, "-pg-ssl-mode=verify-full", "-pg-ssl-root-cert=/b.pem"],
        &["-pg-lock-uri: sslrootcert must be that of the other sessions: put both authorities into one file"],
    );
}

#[test]
fn no_password_is_ever_shown() {
    let bad = [
        "postgres://u:hush@h:port/d",
        "postgres://u:hu@sh@h/d",
        "postgres://u:h/hush@h:x",
        "postgres://u:hush@h/d?nonsense=hush",
        "postgres://u:hush@h/d?sslmode=hush",
        "postgres://u:hush@h/d?hush",
        "postgres://[hush",
        "password=my hush",
        "password=my hush=hush",
        "password='hush",
        "password=x port=hush",
        "hush",
        "user=a password=b sslcert=hush",
    ];
    for uri in bad {
        for flag in ["-pg-uri", "-pg-lock-uri"] {
            let error = parse(&[flag, uri], &[]).unwrap_err();
            assert_eq!(error.mistakes.len(), 1, "{error}");
            let text = format!("{error} {error:?}");
            assert!(!text.contains("hush") && text.contains(flag), "{uri}: {text}");
        }
    }
    for args in [
        &["-pg-password=hush", "-pg-lock-uri=postgres://u:hush@h/d?application_name=x"][..],
        &["-pg-uri=password=hush", "-pg-password=hush"],
    ] {
        let text = format!("{:?}", parse(args, &[]).unwrap());
        assert!(!text.contains("hush"), "{text}");
    }
    let stray = parse(&["-pg-password", "my", "hush"], &[]).unwrap_err().to_string();
    assert!(!stray.contains("hush"), "{stray}");
    let misspelled = parse(&["-pg-pasword", "hush"], &[]).unwrap_err().to_string();
    assert!(!misspelled.contains("hush"), "{misspelled}");
}

#[test]
fn settings_of_libpq_we_lack_are_named() {
    let error = parse(&["-pg-uri=postgres://h/?sslcert=x"], &[]).unwrap_err();
    assert_eq!(error.mistakes, ["invalid value for flag -pg-uri: sslcert is not supported"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_uri_panics(uri in "(postgres://)?[a-z=@:/?&%' \\\\]{0,30}(sslmode|sslrootcert)?[=&' ]?\\PC{0,5}") {
        let _ = parse(&["-pg-uri", &uri], &[]);
    }
}
