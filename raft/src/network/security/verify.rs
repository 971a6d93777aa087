//! What a certificate must be for its holder to be a peer. Pure: certificates and a time in, a verdict out.

use std::sync::Arc;

use openclaw_proto::ids::{ClusterId, InstanceId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certs::{Moment, NameError, PeerName};

/// What is wrong with a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    #[error("the certificate expired{}", on(.not_after))]
    Expired { not_after: Option<Moment> },
    #[error("the certificate is not valid yet{}", on(.not_before))]
    NotYetValid { not_before: Option<Moment> },
    #[error("the certificate is not signed by this cluster's authority")]
    UnknownAuthority,
    #[error("the certificate is not meant for this end of a connection")]
    WrongPurpose,
    #[error("the certificate is damaged: {detail}")]
    Damaged { detail: String },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the certificate is of cluster {}, not {expected}", presented.as_ref().map_or("none", ClusterId::as_str))]
    WrongCluster { expected: ClusterId, presented: Option<ClusterId> },
    #[error("the certificate is of instance {presented}, not {expected}")]
    WrongInstance { expected: InstanceId, presented: InstanceId },
}

fn on(moment: &Option<Moment>) -> String {
    moment.map_or_else(String::new, |moment| format!(" ({moment})"))
}

impl CertificateFault {
    /// For a log field or a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired_certificate",
            Self::NotYetValid { .. } => "certificate_not_yet_valid",
            Self::UnknownAuthority => "unknown_authority",
            Self::WrongPurpose => "wrong_purpose",
            Self::Damaged { .. } => "damaged_certificate",
            Self::Name(_) => "no_instance_name",
            Self::WrongCluster { .. } => "wrong_cluster",
            Self::WrongInstance { .. } => "wrong_instance",
        }
    }

    /// The fault behind rustls's error, if it is one of a certificate. Both ends of rustls report through it.
    pub(super) fn of(error: &Error) -> Option<Self> {
        let Error::InvalidCertificate(error) = error else { return None };
        #[expect(clippy::wildcard_enum_match_arm, reason = "rustls may add variants; all others mean the same here")]
        Some(match error {
            CertificateError::Other(OtherError(own)) => match own.downcast_ref::<Self>() {
                Some(fault) => fault.clone(),
                None => Self::Damaged { detail: error.to_string() },
            },
            CertificateError::Expired => Self::Expired { not_after: None },
            CertificateError::ExpiredContext { not_after, .. } => {
                Self::Expired { not_after: Some((*not_after).into()) }
            }
            CertificateError::NotValidYet => Self::NotYetValid { not_before: None },
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid { not_before: Some((*not_before).into()) }
            }
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::WrongPurpose,
            other => Self::Damaged { detail: other.to_string() },
        })
    }

    fn into_tls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

/// What the other end said when it refused us: the TLS alert, in this module's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    #[error("it says that this instance's certificate has expired or is not valid yet")]
    Expired,
    #[error("it says that this instance's certificate is not signed by its authority, or that the secrets differ")]
    UnknownAuthority,
    #[error("it says that this instance showed no certificate")]
    NoCertificate,
    #[error("it says that this instance's certificate names another cluster, or another instance than it wants")]
    WrongName,
    #[error("it says that this instance's certificate is not meant for this end of a connection")]
    WrongPurpose,
    #[error("it ended the handshake with TLS alert {0}")]
    Other(u8),
}

impl From<AlertDescription> for Objection {
    fn from(alert: AlertDescription) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "alerts are an open set")]
        match alert {
            AlertDescription::CertificateExpired => Self::Expired,
            AlertDescription::UnknownCA => Self::UnknownAuthority,
            AlertDescription::CertificateRequired => Self::NoCertificate,
            AlertDescription::CertificateUnknown => Self::WrongName,
            AlertDescription::UnsupportedCertificate => Self::WrongPurpose,
            other => Self::Other(other.into()),
        }
    }
}

/// Whom this instance believes.
#[derive(Debug)]
pub(super) struct Trust {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    /// None: this instance joins and takes any cluster that its authority vouches for.
    cluster_id: Option<ClusterId>,
    /// Whether a certificate may leave the cluster open, as those of joining instances with the secret do.
    unnamed_cluster: bool,
}

impl Trust {
    pub(super) fn new(
        roots: RootCertStore,
        cluster_id: Option<ClusterId>,
        unnamed_cluster: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let roots = Arc::new(roots);
        let algorithms = provider.signature_verification_algorithms;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider).build()?;
        Ok(Self { roots, clients, algorithms, cluster_id, unnamed_cluster })
    }

    /// Whether peers with the same trust would take this chain, as a server's and as a client's.
    pub(super) fn check_own(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), CertificateFault> {
        let Some((own, intermediates)) = chain.split_first() else {
            return Err(CertificateFault::Damaged { detail: "the chain is empty".to_owned() });
        };
        let fault = |error: Error| {
            CertificateFault::of(&error).unwrap_or_else(|| CertificateFault::Damaged { detail: error.to_string() })
        };
        self.server_chain(own, intermediates, now).map_err(fault)?;
        self.client_chain(own, intermediates, now).map_err(fault)
    }

    fn server_chain(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(end)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
            .map_err(forged_is_unknown)
    }

    fn client_chain(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.clients.verify_client_cert(end, intermediates, now).map(|_| ()).map_err(forged_is_unknown)
    }

    /// The name in a certificate whose chain has been checked.
    pub(super) fn name(
        &self,
        end: &CertificateDer<'_>,
        expected: Option<&InstanceId>,
    ) -> Result<PeerName, CertificateFault> {
        let name = PeerName::of_certificate(end)?;
        let fits = match (&self.cluster_id, &name.cluster_id) {
            (_, None) => self.unnamed_cluster,
            (None, Some(_)) => true,
            (Some(ours), Some(theirs)) => ours == theirs,
        };
        match (&self.cluster_id, expected) {
            (Some(ours), _) if !fits => {
                Err(CertificateFault::WrongCluster { expected: ours.clone(), presented: name.cluster_id })
            }
            (None, _) if !fits => Err(NameError::Missing.into()),
            (_, Some(expected)) if *expected != name.instance_id => {
                Err(CertificateFault::WrongInstance { expected: expected.clone(), presented: name.instance_id })
            }
            (_, _) => Ok(name),
        }
    }
}

/// Authorities of two secrets differ by their key alone, so a foreign chain shows as a bad signature under a known
/// subject. It is an unknown authority all the same, and the peer should be told so.
fn forged_is_unknown(error: Error) -> Error {
    if error == Error::InvalidCertificate(CertificateError::BadSignature) {
        Error::InvalidCertificate(CertificateError::UnknownIssuer)
    } else {
        error
    }
}

/// [`Trust`], as rustls asks for it.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<Trust>,
    /// The instance that was dialled; None takes any of the cluster.
    expected: Option<InstanceId>,
}

impl Verifier {
    pub(super) fn new(trust: Arc<Trust>, expected: Option<InstanceId>) -> Self {
        Self { trust, expected }
    }

    fn check_name(&self, end: &CertificateDer<'_>) -> Result<(), Error> {
        self.trust.name(end, self.expected.as_ref()).map(|_| ()).map_err(CertificateFault::into_tls)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trust.server_chain(end, intermediates, now)?;
        self.check_name(end)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// None: a peer has one certificate, and a stranger need not learn the cluster's name.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.client_chain(end, intermediates, now)?;
        self.check_name(end)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}
