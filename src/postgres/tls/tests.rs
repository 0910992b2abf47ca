use std::io::Write;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use tempfile::NamedTempFile;

use super::*;

const HOST: &str = "db.example";

/// Certificate of the server that the client meets.
#[derive(Clone, Copy, Debug)]
enum Server {
    /// A certificate of the trusted authority for the requested host.
    Right,
    /// A certificate of the trusted authority for another host.
    WrongHost,
    /// A certificate of another authority for the requested host.
    UnknownAuthority,
}

/// Certificates of one test.
struct World {
    provider: Arc<CryptoProvider>,
    trusted: CertifiedIssuer<'static, KeyPair>,
    unknown: CertifiedIssuer<'static, KeyPair>,
    root_file: NamedTempFile,
}

impl World {
    fn new() -> World {
        let (trusted, unknown) = (authority(), authority());
        let mut root_file = NamedTempFile::new().unwrap();
        root_file.write_all(trusted.pem().as_bytes()).unwrap();
        World { provider: Arc::new(ring::default_provider()), trusted, unknown, root_file }
    }

    fn server(&self, server: Server) -> ServerConnection {
        let (issuer, host) = match server {
            Server::Right => (&self.trusted, HOST),
            Server::WrongHost => (&self.trusted, "other.example"),
            Server::UnknownAuthority => (&self.unknown, HOST),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        ServerConnection::new(Arc::new(config)).unwrap()
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Does a whole handshake in memory.
fn handshake(config: ClientConfig, mut server: ServerConnection) -> Result<(), rustls::Error> {
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(HOST).unwrap()).unwrap();
    // Three flights suffice; the bound is for a handshake that hangs.
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    panic!("the handshake does not end");
}

#[track_caller]
fn check(mode: SslMode, with_root: bool, accepted: [bool; 3]) {
    let world = World::new();
    let root = with_root.then(|| world.root_file.path());
    for (server, accepted) in [Server::Right, Server::WrongHost, Server::UnknownAuthority].into_iter().zip(accepted) {
        let result = handshake(client_config(mode, root).unwrap(), world.server(server));
        assert_eq!(result.is_ok(), accepted, "{mode:?} with root {with_root}, {server:?}: {result:?}");
    }
}

#[test]
fn prefer_checks_nothing() {
    check(SslMode::Prefer, true, [true, true, true]);
    check(SslMode::Prefer, false, [true, true, true]);
}

#[test]
fn require_checks_the_chain_if_a_root_is_given() {
    check(SslMode::Require, false, [true, true, true]);
    check(SslMode::Require, true, [true, true, false]);
}

#[test]
fn verify_ca_checks_the_chain_but_not_the_host() {
    check(SslMode::VerifyCa, true, [true, true, false]);
}

#[test]
fn verify_full_checks_chain_and_host() {
    check(SslMode::VerifyFull, true, [true, false, false]);
}

#[test]
fn system_roots_do_not_know_our_authority() {
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        match client_config(mode, None) {
            Ok(config) => assert!(handshake(config, World::new().server(Server::Right)).is_err(), "{mode:?}"),
            Err(TlsError::NoSystemRoots) => {
                let _ = writeln!(std::io::stderr(), "skipped: this machine has no root certificates");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_bad_root_file_is_named() {
    let missing = client_config(SslMode::VerifyFull, Some(Path::new("/nowhere/ca.pem"))).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read the root certificates in /nowhere/ca.pem");
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(b"no certificate\n").unwrap();
    let empty = client_config(SslMode::VerifyCa, Some(file.path())).unwrap_err();
    assert_eq!(empty.to_string(), format!("{} holds no usable root certificate", file.path().display()));
}

#[test]
fn a_forged_signature_is_refused_even_unverified() {
    // The server shows a certificate without having its key.
    let world = World::new();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([HOST.to_owned()]).unwrap().signed_by(&key, &world.trusted).unwrap();
    let stolen = certificate.der().clone();
    let other = PrivateKeyDer::try_from(KeyPair::generate().unwrap().serialize_der()).unwrap();
    let signer = world.provider.key_provider.load_private_key(other).unwrap();
    let resolver = rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(vec![stolen], signer));
    let config = ServerConfig::builder_with_provider(world.provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    let server = ServerConnection::new(Arc::new(config)).unwrap();
    assert!(handshake(client_config(SslMode::Require, None).unwrap(), server).is_err());
}

#[test]
fn tokio_postgres_insists_from_require_on() {
    use tokio_postgres::config::SslMode as Wire;
    assert_eq!(sslmode(SslMode::Disable), Wire::Disable);
    assert_eq!(sslmode(SslMode::Prefer), Wire::Prefer);
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        assert_eq!(sslmode(mode), Wire::Require);
    }
}
