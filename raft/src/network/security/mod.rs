//! How instances of one cluster recognise each other on the peer listener.
//!
//! Owns both ends of a peer connection up to its first HTTP/2 byte: [`PeerListener`] accepts, [`PeerConnector`] dials,
//! and both speak TLS 1.3 with a certificate on each side. tonic gets finished connections, since its own TLS drops a
//! refused peer without saying why. It never decides what a recognised peer may ask; every call's cluster id and
//! addressee are checked by the service.
//!
//! # What is checked
//!
//! Both ends: the chain to the authority, the dates, the purpose, and that the name inside ([`crate::certs`]) belongs
//! to this cluster. The dialling end also: that it is the instance which it meant to reach. Sessions are never resumed,
//! so an expired certificate gets no new connection; one that is open stays open. The authority's own dates are not
//! looked at (no TLS library does for what it is told to trust); certificates made by [`crate::certs`] end with it.
//!
//! # The shared secret
//!
//! From the secret each process derives the same authority key (HKDF-SHA256 to an Ed25519 seed), and with it issues
//! itself a certificate at start. So the wire, the checks and the errors are those of certificate files.
//!
//! - The salt is a constant and not the cluster's id: an instance that joins does not know the id yet, and it must be
//!   able to prove that it has the secret before it is told. Two clusters with one secret are kept apart by the name in
//!   the certificate, and once more by the id in every call. Such a joiner's certificate names no cluster; only the
//!   authority of a secret may have issued one like that.
//! - Anyone who connects sees a certificate that the secret's key has signed, and can try secrets against it at
//!   leisure. Hence [`MIN_SECRET_CHARS`], and hence the secret should come from a random generator
//!   (`openssl rand -base64 32`), not from a person.
//! - Whoever knows the secret can be any instance. Certificate files give each instance no more than its own name.
//!
//! # What each end sees of a refusal
//!
//! The refusing end knows the cause and logs it ([`Refusal`], [`ConnectError`]). The other end is told by a TLS alert,
//! which distinguishes an expired certificate, an unknown authority, a missing certificate and a name that does not fit
//! ([`Objection`]). In TLS 1.3 a client has finished its handshake before the server looks at its certificate, so the
//! connector goes on to wait for the server's first bytes (HTTP/2 servers open with SETTINGS): only then does it
//! call the connection good, and an alert in their place becomes [`ConnectError::RefusedByPeer`].

mod connector;
mod listener;
mod refusals;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hkdf::Hkdf;
use openclaw_proto::ids::{ClusterId, InstanceId};
use rcgen::KeyPair;
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use sha2::Sha256;

use crate::certs::{self, Authority, CertError, Moment, NameError, PeerName, Validity};

pub use connector::{ConnectError, PeerConnector, connector};
pub use listener::{HandshakeLimits, PeerListener};
pub use refusals::{Refusal, Refusals};
pub use stream::{PeerIdentity, PeerStream};
pub use verify::{CertificateFault, Objection};

use verify::{Trust, Verifier};

/// Shorter secrets are refused: they could be guessed from a certificate that anyone who connects is shown.
pub const MIN_SECRET_CHARS: usize = 32;
/// From here on the certificate's end is worth a warning.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const CA_KEY: &str = "cluster.peer.tls.ca";
const CERT_KEY: &str = "cluster.peer.tls.cert";
const KEY_KEY: &str = "cluster.peer.tls.key";
const SECRET_KEY: &str = "cluster.peer.secret";

/// A chain or a bundle of authorities is a few KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Changing either changes every derived key: instances of both versions would not know each other.
const SECRET_SALT: &[u8] = b"openclaw peer authority v1";
const SECRET_INFO: &[u8] = b"ed25519 seed";
/// PKCS #8 version 1 around a 32-byte Ed25519 seed (RFC 8410, section 7).
const ED25519_PKCS8_PREFIX: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];
const SELF_ISSUED_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const ALPN_HTTP2: &[u8] = b"h2";

/// Where an operator put the certificates: `cluster.peer.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// One or more authorities, PEM; several while one replaces another.
    pub ca: PathBuf,
    /// This instance's certificate, followed by intermediates if there are any, PEM.
    pub cert: PathBuf,
    /// Its key: PKCS #8, PKCS #1 or SEC 1, unencrypted, PEM.
    pub key: PathBuf,
}

/// Why peers cannot be secured as the settings ask. Each text names the setting and the file.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("{setting}: cannot read {}: {source}", path.display())]
    Read { setting: &'static str, path: PathBuf, source: io::Error },
    #[error("{setting}: {} is larger than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge { setting: &'static str, path: PathBuf },
    #[error("{setting}: {} holds no {wanted} in PEM form, or a damaged one", path.display())]
    Pem { setting: &'static str, path: PathBuf, wanted: &'static str },
    #[error("{KEY_KEY}: {} is of a kind that TLS cannot use here: {detail}", path.display())]
    UnusableKey { path: PathBuf, detail: String },
    #[error("{KEY_KEY}: {} is not the key of the certificate in {}", key.display(), cert.display())]
    KeyMismatch { key: PathBuf, cert: PathBuf },
    #[error("{CERT_KEY}: {}: {source}", path.display())]
    Name { path: PathBuf, source: NameError },
    #[error("{CERT_KEY}: {} names no cluster", path.display())]
    NoCluster { path: PathBuf },
    #[error("{CERT_KEY}: {} was issued for {presented}, but this is {expected}", path.display())]
    WrongInstance { path: PathBuf, presented: InstanceId, expected: InstanceId },
    #[error("{CERT_KEY}: {} was issued for cluster {presented}, but this instance is of {expected}", path.display())]
    WrongCluster { path: PathBuf, presented: ClusterId, expected: ClusterId },
    #[error("{CERT_KEY}: {} expired on {at}", path.display())]
    Expired { path: PathBuf, at: Moment },
    #[error("{CERT_KEY}: {} is not valid before {at}", path.display())]
    NotYetValid { path: PathBuf, at: Moment },
    #[error("{CERT_KEY}: {} is not signed by an authority in {CA_KEY} ({})", cert.display(), ca.display())]
    NotSignedByCa { cert: PathBuf, ca: PathBuf },
    #[error("{CERT_KEY}: {}: {fault}; it must be good for both ends of a connection", path.display())]
    Unusable { path: PathBuf, fault: CertificateFault },
    #[error("{SECRET_KEY} has {actual} characters; at least {MIN_SECRET_CHARS} are needed, from a random generator")]
    ShortSecret { actual: usize },
    #[error(
        "peers would speak plaintext on {listen}, which is not a loopback address: set {CA_KEY}, {CERT_KEY} and \
         {KEY_KEY}, or {SECRET_KEY}"
    )]
    PlaintextNotLoopback { listen: SocketAddr },
    #[error("cannot issue this instance's certificate: {0}")]
    Issue(#[from] CertError),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot set up TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// By what peers recognise each other. Cheap to clone.
#[derive(Debug, Clone)]
pub enum PeerSecurity {
    /// Nobody is recognised; on loopback alone.
    Plaintext,
    Tls(Arc<TlsIdentity>),
}

/// This instance's certificate, and whom it trusts.
#[derive(Debug)]
pub struct TlsIdentity {
    name: PeerName,
    source: Source,
    until: Moment,
    key_readable_by_others: bool,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    /// Cloned per connector, which puts its own verifier in.
    client: ClientConfig,
}

#[derive(Debug)]
enum Source {
    Files(TlsFiles),
    Secret,
}

impl PeerSecurity {
    /// Mutual TLS with certificates from files, all of which are checked here, so that a mistake is found at start and
    /// not by a peer.
    ///
    /// `cluster_id`: None for an instance that joins; it is then learned from the certificate
    /// ([`PeerSecurity::cluster_id`]).
    ///
    /// # Errors
    /// [`SecurityError`] names the setting and the file.
    pub fn from_files(
        cluster_id: Option<&ClusterId>,
        instance_id: &InstanceId,
        files: &TlsFiles,
    ) -> Result<Self, SecurityError> {
        let ca_pem = read(CA_KEY, &files.ca)?;
        let cert_pem = read(CERT_KEY, &files.cert)?;
        let key_pem = read(KEY_KEY, &files.key)?;

        let damaged_ca = || SecurityError::Pem { setting: CA_KEY, path: files.ca.clone(), wanted: "certificate" };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&ca_pem).ok_or_else(damaged_ca)? {
            roots.add(certificate).map_err(|_| damaged_ca())?;
        }

        let damaged_cert = || SecurityError::Pem { setting: CERT_KEY, path: files.cert.clone(), wanted: "certificate" };
        let chain = certificates(&cert_pem).ok_or_else(damaged_cert)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| SecurityError::Pem {
            setting: KEY_KEY,
            path: files.key.clone(),
            wanted: "unencrypted private key",
        })?;
        let certified = certify(chain, key).map_err(|error| {
            if matches!(error, rustls::Error::InconsistentKeys(_)) {
                SecurityError::KeyMismatch { key: files.key.clone(), cert: files.cert.clone() }
            } else if matches!(error, rustls::Error::InvalidCertificate(_)) {
                damaged_cert()
            } else {
                SecurityError::UnusableKey { path: files.key.clone(), detail: error.to_string() }
            }
        })?;

        let own = certified.end_entity_cert().map_err(|_| damaged_cert())?;
        let path = || files.cert.clone();
        let name = PeerName::of_certificate(own).map_err(|source| SecurityError::Name { path: path(), source })?;
        let presented = name.cluster_id.clone().ok_or_else(|| SecurityError::NoCluster { path: path() })?;
        if name.instance_id != *instance_id {
            let (presented, expected) = (name.instance_id, instance_id.clone());
            return Err(SecurityError::WrongInstance { path: path(), presented, expected });
        }
        if let Some(expected) = cluster_id.filter(|expected| **expected != presented) {
            return Err(SecurityError::WrongCluster { path: path(), presented, expected: expected.clone() });
        }

        let trust = Trust::new(roots, Some(presented), false, provider())?;
        trust.check_own(&certified.cert, UnixTime::now()).map_err(|fault| match fault {
            CertificateFault::Expired { not_after: Some(at) } => SecurityError::Expired { path: path(), at },
            CertificateFault::NotYetValid { not_before: Some(at) } => SecurityError::NotYetValid { path: path(), at },
            CertificateFault::UnknownAuthority => SecurityError::NotSignedByCa { cert: path(), ca: files.ca.clone() },
            fault @ (CertificateFault::Expired { not_after: None }
            | CertificateFault::NotYetValid { not_before: None }
            | CertificateFault::WrongPurpose
            | CertificateFault::Damaged { .. }
            | CertificateFault::Name(_)
            | CertificateFault::WrongCluster { .. }
            | CertificateFault::WrongInstance { .. }) => SecurityError::Unusable { path: path(), fault },
        })?;
        let mode = std::fs::metadata(&files.key).map_or(0, |metadata| metadata.permissions().mode());
        let mut identity = TlsIdentity::new(name, Source::Files(files.clone()), trust, certified)?;
        identity.key_readable_by_others = mode & 0o004 != 0;
        Ok(Self::Tls(Arc::new(identity)))
    }

    /// Mutual TLS with a certificate that this process issues itself from the cluster's shared secret.
    ///
    /// `cluster_id`: None for an instance that joins and has not been told the id; see the module's text. Once it knows
    /// the id it makes a new value with it. White space around the secret is not part of it: it may come from a file on
    /// one instance and from the environment on another.
    ///
    /// # Errors
    /// [`SecurityError::ShortSecret`]; or the machine cannot make keys.
    pub fn from_secret(
        cluster_id: Option<&ClusterId>,
        instance_id: &InstanceId,
        secret: &str,
    ) -> Result<Self, SecurityError> {
        let secret = secret.trim();
        let actual = secret.chars().count();
        if actual < MIN_SECRET_CHARS {
            return Err(SecurityError::ShortSecret { actual });
        }
        let validity = Validity::starting_now(SELF_ISSUED_FOR);
        let authority = Authority::from_key(authority_key(secret)?, validity)?;
        let name = PeerName { cluster_id: cluster_id.cloned(), instance_id: instance_id.clone() };
        let issued = authority.issue_named(name.clone(), &[], validity)?;
        let damaged = |_| rustls::Error::General("a certificate made here does not parse".to_owned());
        let certified = certify(
            vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).map_err(damaged)?],
            PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).map_err(damaged)?,
        )?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone())?;
        let trust = Trust::new(roots, cluster_id.cloned(), true, provider())?;
        Ok(Self::Tls(Arc::new(TlsIdentity::new(name, Source::Secret, trust, certified)?)))
    }

    /// No protection, for a listener that only this machine can reach.
    ///
    /// # Errors
    /// [`SecurityError::PlaintextNotLoopback`] for any other address.
    pub fn plaintext(listen: SocketAddr) -> Result<Self, SecurityError> {
        if listen.ip().to_canonical().is_loopback() {
            Ok(Self::Plaintext)
        } else {
            Err(SecurityError::PlaintextNotLoopback { listen })
        }
    }

    /// The cluster that this instance's certificate names, if there is one.
    pub fn cluster_id(&self) -> Option<&ClusterId> {
        match self {
            Self::Plaintext => None,
            Self::Tls(identity) => identity.name.cluster_id.as_ref(),
        }
    }

    /// One line for the log at start.
    pub fn describe(&self) -> String {
        match self {
            Self::Plaintext => "plaintext, on loopback only".to_owned(),
            Self::Tls(identity) => match &identity.source {
                Source::Files(files) => format!(
                    "mutual TLS with {} as {}, valid until {}",
                    files.cert.display(),
                    identity.name,
                    identity.until
                ),
                Source::Secret => format!("mutual TLS from the shared secret, as {}", identity.name),
            },
        }
    }

    /// When this instance's certificate ends, for a metric; None where there is none, or where a restart renews it.
    pub fn certificate_until(&self) -> Option<Moment> {
        match self {
            Self::Plaintext => None,
            Self::Tls(identity) => match identity.source {
                Source::Files(_) => Some(identity.until),
                Source::Secret => None,
            },
        }
    }

    /// What an operator should look at, at start and then daily: a certificate that has ended or ends within
    /// [`EXPIRY_WARNING`], a key that everyone on this machine can read.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings_at(UnixTime::now())
    }

    fn warnings_at(&self, now: UnixTime) -> Vec<String> {
        let Self::Tls(identity) = self else { return Vec::new() };
        let Source::Files(files) = &identity.source else { return Vec::new() };
        let mut warnings = Vec::new();
        let left = identity.until.as_unix_time().as_secs().checked_sub(now.as_secs());
        match left {
            None => warnings.push(format!(
                "{CERT_KEY}: {} expired on {}: no peer accepts a new connection with it",
                files.cert.display(),
                identity.until
            )),
            Some(left) if left < EXPIRY_WARNING.as_secs() => warnings.push(format!(
                "{CERT_KEY}: {} expires on {}, in {} days",
                files.cert.display(),
                identity.until,
                left / (24 * 60 * 60)
            )),
            Some(_) => {}
        }
        if identity.key_readable_by_others {
            warnings.push(format!("{KEY_KEY}: {} is readable by every user of this machine", files.key.display()));
        }
        warnings
    }
}

impl TlsIdentity {
    fn new(name: PeerName, source: Source, trust: Trust, certified: CertifiedKey) -> Result<Self, SecurityError> {
        let own = certified.end_entity_cert()?;
        let until = certs::parse(own)
            .map(|certificate| Moment::from_unix_seconds(certificate.validity().not_after.timestamp()))
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let trust = Arc::new(trust);
        let resolver = Arc::new(SingleCertAndKey::from(certified));

        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Verifier::new(trust.clone(), None)))
            .with_cert_resolver(resolver.clone());
        server.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(trust.clone(), None)))
            .with_client_cert_resolver(resolver);
        client.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        // The name that counts is checked by the verifier; what the wire would show tells eavesdroppers only.
        client.enable_sni = false;

        Ok(Self { name, source, until, key_readable_by_others: false, trust, server: Arc::new(server), client })
    }

    fn client_config(&self, expected: Option<InstanceId>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(Arc::new(Verifier::new(self.trust.clone(), expected)));
        Arc::new(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certify(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &provider())
}

/// The key of the authority that `secret` stands for.
fn authority_key(secret: &str) -> Result<KeyPair, CertError> {
    let mut pkcs8 = [0; ED25519_PKCS8_PREFIX.len() + 32];
    let (prefix, seed) = pkcs8.split_at_mut(ED25519_PKCS8_PREFIX.len());
    prefix.copy_from_slice(&ED25519_PKCS8_PREFIX);
    Hkdf::<Sha256>::new(Some(SECRET_SALT), secret.as_bytes())
        .expand(SECRET_INFO, seed)
        .map_err(|_| rcgen::Error::RingUnspecified)?;
    let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?)
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, SecurityError> {
    let failed = |source| SecurityError::Read { setting, path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(SecurityError::TooLarge { setting, path: path.to_owned() });
    }
    Ok(bytes)
}

/// None when there is no certificate, or a damaged one.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!found.is_empty()).then_some(found)
}
