//! rustls, configured as libpq's `sslmode` requires.
//!
//! This module makes only the client's configuration; tokio-postgres and rustls do the handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::SslMode;

/// Reason why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of `-pg-ssl-root-cert` cannot be read or is not PEM.
    #[error("cannot read the root certificates in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: pem::Error,
    },
    /// The file of `-pg-ssl-root-cert` contains no certificate that can be an authority.
    #[error("{} holds no usable root certificate", .0.display())]
    Empty(PathBuf),
    /// This machine has no trusted authorities.
    #[error("this machine has no root certificates: install ca-certificates or set -pg-ssl-root-cert")]
    NoSystemRoots,
    /// rustls refused the configuration.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
}

/// Returns a TLS connector that checks the server's certificate as `mode` requires.
///
/// `root_cert` is a PEM file of the trusted authorities; without it the system's are trusted. As in lib/pq, `Require`
/// with a root certificate verifies as `VerifyCa`. `Disable` needs no connector; the one it gets checks nothing.
///
/// # Errors
///
/// [`TlsError`] if the authorities cannot be read or there are none.
pub fn connector(mode: SslMode, root_cert: Option<&Path>) -> Result<MakeRustlsConnect, TlsError> {
    Ok(MakeRustlsConnect::new(client_config(mode, root_cert)?))
}

/// Returns whether tokio-postgres asks for TLS and requires it; the certificate is checked by [`connector`].
#[must_use]
pub fn sslmode(mode: SslMode) -> tokio_postgres::config::SslMode {
    match mode {
        SslMode::Disable => tokio_postgres::config::SslMode::Disable,
        SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
    }
}

/// Verifier that checks less of the server's certificate than rustls would. It always checks the proof that the server
/// has its key.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    /// `Some` checks the chain but not the name (verify-ca); `None` checks neither (prefer, require).
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked after the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn client_config(mode: SslMode, root_cert: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match (mode, root_cert) {
        (SslMode::Disable | SslMode::Prefer, _) | (SslMode::Require, None) => {
            Arc::new(Lenient { provider: provider.clone(), chain: None })
        }
        (SslMode::Require | SslMode::VerifyCa, root_cert) => {
            let chain = Some(strict(&provider, root_cert)?);
            Arc::new(Lenient { provider: provider.clone(), chain })
        }
        (SslMode::VerifyFull, root_cert) => strict(&provider, root_cert)?,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

/// Returns rustls's own verifier: chain, dates and name.
fn strict(provider: &Arc<CryptoProvider>, root_cert: Option<&Path>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let roots = match root_cert {
        Some(path) => roots_from(path)?,
        None => system_roots()?,
    };
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| TlsError::Setup(rustls::Error::General(error.to_string())))
}

fn roots_from(path: &Path) -> Result<RootCertStore, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots.add(certificate.map_err(unreadable)?)?;
    }
    if roots.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // A few unreadable certificates among the system's hundred are no reason to refuse the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(roots) }
}

#[cfg(test)]
mod tests;
