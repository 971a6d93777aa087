//! Certificates by which the instances of one cluster know each other: the authority, what it issues, and the name inside.
//!
//! Owns the form of the name and the making of certificates; `openclaw cluster certs` and the shared secret both end
//! here. It never opens a connection (that is [`crate::network::security`]) and reads no file: PEM text comes in, PEM
//! text goes out, and only [`IssuedCert::write_files`] touches a disk.
//!
//! # The name
//!
//! One URI in the subject alternative names: `openclaw://<cluster id>/<instance id>`. Instance ids may hold dots, also
//! doubled or at the end, so not every id is a host name; `/` occurs in neither id, so this form is never ambiguous.
//! A certificate with two such URIs is refused rather than guessed at. Where the instance id is a host name,
//! `<instance id>.<cluster id>.openclaw.internal` is added as a DNS name: for `openssl s_client` and its like, since
//! no instance reads it. An operator's own authority (cert-manager, step-ca, Vault) need only set the URI, with both
//! the server and client purposes.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openclaw_proto::ids::{ClusterId, InstanceId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const SCHEME: &str = "openclaw://";
const DNS_SUFFIX: &str = "openclaw.internal";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// 9999-12-31T23:59:59Z, the last moment that a certificate can name.
const LAST_SECOND: u64 = 253_402_300_799;
/// More names than that belong into another certificate.
const MAX_EXTRA_NAMES: usize = 64;

/// Why a certificate could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("validity from {from} to {until} is empty or outside of what a certificate can say")]
    Validity { from: Moment, until: Moment },
    #[error("the authority is valid until {until}, so it cannot vouch for anything from {from} on")]
    AuthorityExpired { from: Moment, until: Moment },
    #[error("extra name {name:?} is neither a host name nor an IP address")]
    ExtraName { name: String },
    #[error("{actual} extra names; at most {MAX_EXTRA_NAMES} are allowed")]
    ExtraNames { actual: usize },
    #[error("the authority's certificate is not in PEM form, or damaged")]
    AuthorityCertificate,
    #[error("the authority's key is not an unencrypted PKCS #8 key in PEM form: {0}")]
    AuthorityKey(rcgen::Error),
    #[error("the certificate is not an authority's: it may not sign others")]
    NotAnAuthority,
    #[error("the certificate names no cluster, or is an instance's; an authority made by this program names one")]
    AuthorityName,
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    #[error("cannot make the certificate: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("{} exists already and is not overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A moment in UTC, for messages: `2027-01-31T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(UnixTime);

impl Moment {
    pub fn as_unix_time(self) -> UnixTime {
        self.0
    }

    pub(crate) fn from_unix_seconds(seconds: i64) -> Self {
        Self(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }
}

impl From<UnixTime> for Moment {
    fn from(time: UnixTime) -> Self {
        Self(time)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(self.0.as_secs().min(LAST_SECOND));
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", at.hour(), at.minute(), at.second())
    }
}

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from: UnixTime,
    pub until: UnixTime,
}

impl Validity {
    /// From one day ago, so that a peer whose clock is behind accepts it at once, for `duration` from now.
    pub fn starting_now(duration: Duration) -> Self {
        let now = Duration::from_secs(UnixTime::now().as_secs());
        Self {
            from: UnixTime::since_unix_epoch(now.saturating_sub(DAY)),
            until: UnixTime::since_unix_epoch(now.saturating_add(duration)),
        }
    }

    fn apply(self, params: &mut CertificateParams) -> Result<(), CertError> {
        if self.from >= self.until || self.until.as_secs() > LAST_SECOND {
            return Err(CertError::Validity { from: self.from.into(), until: self.until.into() });
        }
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.from.as_secs());
        params.not_after = epoch + Duration::from_secs(self.until.as_secs());
        Ok(())
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName {
    /// None: an instance that joins with the shared secret and does not know the cluster's id yet.
    pub cluster_id: Option<ClusterId>,
    pub instance_id: InstanceId,
}

/// Why a certificate does not name an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the certificate is damaged")]
    Damaged,
    #[error("the certificate names no instance: it has no URI {SCHEME}<cluster id>/<instance id>")]
    Missing,
    #[error("the certificate names several instances")]
    Several,
    #[error("the certificate's name {uri:?} is not {SCHEME}<cluster id>/<instance id>")]
    Malformed { uri: String },
}

impl PeerName {
    fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.cluster_id.as_ref().map_or("", ClusterId::as_str), self.instance_id)
    }

    fn dns_name(&self) -> Option<String> {
        let name = format!("{}.{}.{DNS_SUFFIX}", self.instance_id, self.cluster_id.as_ref()?);
        DnsName::try_from(name.as_str()).is_ok().then_some(name)
    }

    fn from_uri(uri: &str) -> Result<Self, NameError> {
        let error = || NameError::Malformed { uri: uri.chars().take(160).collect() };
        let (cluster, instance) = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(error)?;
        let cluster_id = match cluster {
            "" => None,
            text => Some(ClusterId::parse(text).map_err(|_| error())?),
        };
        Ok(Self { cluster_id, instance_id: InstanceId::parse(instance).map_err(|_| error())? })
    }

    /// Reads the name from a certificate in DER form. It proves nothing: the caller has checked the signatures.
    ///
    /// # Errors
    /// [`NameError`] when there is not exactly one well-formed name.
    pub fn of_certificate(der: &[u8]) -> Result<Self, NameError> {
        Self::from_uri(&single_uri(&parse(der).ok_or(NameError::Damaged)?)?)
    }

    /// Reads the name from the first certificate in PEM text; how an instance that joins learns the cluster's id from
    /// its own certificate.
    ///
    /// # Errors
    /// [`NameError`] when there is not exactly one well-formed name.
    pub fn of_pem(pem: &str) -> Result<Self, NameError> {
        Self::of_certificate(&CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| NameError::Damaged)?)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster_id {
            Some(cluster) => write!(f, "{} of cluster {cluster}", self.instance_id),
            None => write!(f, "{} of a cluster not named", self.instance_id),
        }
    }
}

pub(crate) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().and_then(|(rest, certificate)| rest.is_empty().then_some(certificate))
}

fn single_uri(certificate: &X509Certificate<'_>) -> Result<String, NameError> {
    let names = certificate.subject_alternative_name().map_err(|_| NameError::Damaged)?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
        if let GeneralName::URI(uri) = name { uri.starts_with(SCHEME).then_some(*uri) } else { None }
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.to_owned()),
        (None, _) => Err(NameError::Missing),
        (Some(_), Some(_)) => Err(NameError::Several),
    }
}

/// Signs the certificates of one cluster's instances. Whoever holds its key can be any instance.
pub struct Authority {
    cluster_id: Option<ClusterId>,
    issuer: Issuer<'static, KeyPair>,
    until: UnixTime,
    certificate: CertificateDer<'static>,
    cert_pem: String,
    key_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster_id", &self.cluster_id).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a random P-256 key.
    ///
    /// # Errors
    /// [`CertError::Validity`] for an impossible span; [`CertError::Generate`] when the machine has no randomness.
    pub fn create(cluster_id: &ClusterId, validity: Validity) -> Result<Self, CertError> {
        Self::sign_itself(Some(cluster_id), KeyPair::generate()?, validity)
    }

    /// The authority that a shared secret stands for: subject and key are the same wherever it is made.
    pub(crate) fn from_key(key: KeyPair, validity: Validity) -> Result<Self, CertError> {
        Self::sign_itself(None, key, validity)
    }

    fn sign_itself(cluster_id: Option<&ClusterId>, key: KeyPair, validity: Validity) -> Result<Self, CertError> {
        let mut params = CertificateParams::default();
        validity.apply(&mut params)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "openclaw peer authority");
        if let Some(cluster_id) = cluster_id {
            params.distinguished_name.push(DnType::CommonName, cluster_id.as_str());
            params.subject_alt_names.push(SanType::URI(format!("{SCHEME}{cluster_id}/").try_into()?));
        }
        // Zero: it signs instances, and no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            cluster_id: cluster_id.cloned(),
            until: validity.until,
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.into(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Takes up an authority that [`Authority::create`] made before, from its two PEM texts.
    ///
    /// # Errors
    /// [`CertError`] when a text is damaged, the two do not belong together, or it is no authority of a cluster.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, CertError> {
        let certificate =
            CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| CertError::AuthorityCertificate)?;
        let key = KeyPair::from_pem(key_pem).map_err(CertError::AuthorityKey)?;
        let (cluster_id, until) = {
            let parsed = parse(&certificate).ok_or(CertError::AuthorityCertificate)?;
            if !parsed.is_ca() {
                return Err(CertError::NotAnAuthority);
            }
            if parsed.public_key().raw != key.subject_public_key_info() {
                return Err(CertError::KeyMismatch);
            }
            let uri = single_uri(&parsed).map_err(|_| CertError::AuthorityName)?;
            let cluster = uri.strip_prefix(SCHEME).and_then(|rest| rest.strip_suffix('/'));
            let cluster = cluster.and_then(|text| ClusterId::parse(text).ok()).ok_or(CertError::AuthorityName)?;
            (cluster, Moment::from_unix_seconds(parsed.validity().not_after.timestamp()).as_unix_time())
        };
        Ok(Self {
            cluster_id: Some(cluster_id),
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            until,
            certificate,
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// None for the authority of a shared secret, which is no cluster's own.
    pub fn cluster_id(&self) -> Option<&ClusterId> {
        self.cluster_id.as_ref()
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The secret half. It belongs on the machine that issues certificates and on no instance.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Writes `ca.crt` and `ca.key` into `dir`, as [`IssuedCert::write_files`] does.
    ///
    /// # Errors
    /// [`CertError::Exists`] or [`CertError::Write`]; then neither file is left behind.
    pub fn write_files(&self, dir: &Path) -> Result<WrittenFiles, CertError> {
        write_pair(dir, "ca", &self.cert_pem, &self.key_pem)
    }

    /// A certificate with a new P-256 key for one instance, good for both ends of a connection.
    ///
    /// `extra_names` are host names or IP addresses to add, for tools that check those; no instance reads them. The
    /// certificate ends no later than the authority does, since nobody would believe it after that.
    ///
    /// # Errors
    /// [`CertError`] for a name or span that no certificate can carry.
    pub fn issue(
        &self,
        instance_id: &InstanceId,
        extra_names: &[String],
        validity: Validity,
    ) -> Result<IssuedCert, CertError> {
        self.issue_named(
            PeerName { cluster_id: self.cluster_id.clone(), instance_id: instance_id.clone() },
            extra_names,
            validity,
        )
    }

    pub(crate) fn issue_named(
        &self,
        name: PeerName,
        extra_names: &[String],
        validity: Validity,
    ) -> Result<IssuedCert, CertError> {
        if extra_names.len() > MAX_EXTRA_NAMES {
            return Err(CertError::ExtraNames { actual: extra_names.len() });
        }
        let is_no_name =
            |name: &&String| DnsName::try_from(name.as_str()).is_err() && name.parse::<std::net::IpAddr>().is_err();
        if let Some(name) = extra_names.iter().find(is_no_name) {
            return Err(CertError::ExtraName { name: name.chars().take(160).collect() });
        }
        if validity.from >= self.until {
            return Err(CertError::AuthorityExpired { from: validity.from.into(), until: self.until.into() });
        }
        let mut params = CertificateParams::new(extra_names)?;
        Validity { from: validity.from, until: validity.until.min(self.until) }.apply(&mut params)?;
        params.subject_alt_names.push(SanType::URI(name.uri().try_into()?));
        if let Some(dns) = name.dns_name() {
            params.subject_alt_names.push(SanType::DnsName(dns.try_into()?));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.instance_id.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedCert { name, cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// A certificate and its key, as PEM text.
pub struct IssuedCert {
    pub name: PeerName,
    pub cert_pem: String,
    /// Secret.
    pub key_pem: String,
}

impl fmt::Debug for IssuedCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCert").field("name", &self.name).finish_non_exhaustive()
    }
}

impl IssuedCert {
    /// Writes `<instance id>.crt` and `<instance id>.key` into `dir`: the key readable by its owner alone, both whole
    /// and on disk or not there at all, and no file that exists is touched.
    ///
    /// # Errors
    /// [`CertError::Exists`] or [`CertError::Write`]; then neither file is left behind.
    pub fn write_files(&self, dir: &Path) -> Result<WrittenFiles, CertError> {
        write_pair(dir, self.name.instance_id.as_str(), &self.cert_pem, &self.key_pem)
    }
}

/// Where a certificate and its key went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn write_pair(dir: &Path, stem: &str, cert_pem: &str, key_pem: &str) -> Result<WrittenFiles, CertError> {
    let files = WrittenFiles { cert: dir.join(format!("{stem}.crt")), key: dir.join(format!("{stem}.key")) };
    // Asked first, so that the common mistake leaves nothing to undo; `place` decides.
    for path in [&files.key, &files.cert] {
        if path.symlink_metadata().is_ok() {
            return Err(CertError::Exists { path: path.clone() });
        }
    }
    place(&files.key, key_pem, 0o600)?;
    place(&files.cert, cert_pem, 0o644).inspect_err(|_| discard(&files.key))?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| CertError::Write { path: dir.to_owned(), source })?;
    Ok(files)
}

/// A link instead of a rename puts the whole file in place and fails when the name is taken; a rename would replace
/// what is there. File systems without links get the rename after one more look.
fn place(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let failed = |source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            CertError::Exists { path }
        } else {
            CertError::Write { path, source }
        }
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}.tmp", rand::random::<u64>()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })();
    let placed = written.and_then(|()| match std::fs::hard_link(&temporary, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists && path.symlink_metadata().is_err() => {
            std::fs::rename(&temporary, path)
        }
        other => other,
    });
    discard(&temporary);
    placed.map_err(failed)
}

fn discard(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file that is of no use");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    fn cluster(text: &str) -> ClusterId {
        ClusterId::parse(text).unwrap()
    }

    fn instance(text: &str) -> InstanceId {
        InstanceId::parse(text).unwrap()
    }

    fn authority() -> Authority {
        Authority::create(&cluster("blue"), Validity::starting_now(YEAR)).unwrap()
    }

    #[test]
    fn a_name_survives_its_certificate_whatever_the_ids_hold() {
        let longest = "x".repeat(InstanceId::MAX_BYTES);
        for (cluster_text, instance_text) in [
            ("blue", "node-1"),
            ("blue", "node-1.rack-2"),
            ("blue", "a..b."),
            ("-", "0-."),
            (&"c".repeat(ClusterId::MAX_BYTES), longest.as_str()),
        ] {
            let authority = Authority::create(&cluster(cluster_text), Validity::starting_now(YEAR)).unwrap();
            let issued = authority.issue(&instance(instance_text), &[], Validity::starting_now(YEAR)).unwrap();
            let expected = PeerName { cluster_id: Some(cluster(cluster_text)), instance_id: instance(instance_text) };
            assert_eq!(PeerName::of_pem(&issued.cert_pem), Ok(expected));
        }
    }

    #[test]
    fn uris_that_are_no_names_are_refused() {
        for bad in [
            "openclaw://",
            "openclaw://a",
            "openclaw://a/",
            "openclaw://A/b",
            "openclaw://a/b/c",
            "openclaw://a/B",
            "http://a/b",
        ] {
            assert!(matches!(PeerName::from_uri(bad), Err(NameError::Malformed { .. })), "{bad}");
        }
        assert_eq!(PeerName::from_uri("openclaw:///n1").unwrap().cluster_id, None);
    }

    #[test]
    fn a_certificate_with_two_names_or_none_names_nobody() {
        let key = KeyPair::generate().unwrap();
        for (uris, expected) in [
            (vec!["openclaw://a/b", "openclaw://a/c"], NameError::Several),
            (vec!["spiffe://a/b"], NameError::Missing),
            (vec![], NameError::Missing),
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(PeerName::of_certificate(certificate.der()), Err(expected));
        }
        assert_eq!(PeerName::of_certificate(b"no certificate"), Err(NameError::Damaged));
    }

    #[test]
    fn an_authority_is_loaded_from_its_files_and_issues_on() {
        let dir = tempfile::tempdir().unwrap();
        let files = authority().write_files(dir.path()).unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let loaded = Authority::load(&read(&files.cert), &read(&files.key)).unwrap();
        assert_eq!(loaded.cluster_id(), Some(&cluster("blue")));
        let issued = loaded.issue(&instance("n1"), &[], Validity::starting_now(YEAR)).unwrap();
        let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
        let parent = parse(loaded.certificate()).unwrap();
        assert_eq!(parse(&der).unwrap().issuer(), parent.subject());
    }

    #[test]
    fn what_is_no_authority_is_not_loaded() {
        let (ours, other) = (authority(), authority());
        let issued = ours.issue(&instance("n1"), &[], Validity::starting_now(YEAR)).unwrap();
        let load = |cert: &str, key: &str| Authority::load(cert, key).unwrap_err();
        assert!(matches!(load(ours.cert_pem(), other.key_pem()), CertError::KeyMismatch));
        assert!(matches!(load(&issued.cert_pem, &issued.key_pem), CertError::NotAnAuthority));
        assert!(matches!(load("", ours.key_pem()), CertError::AuthorityCertificate));
        assert!(matches!(load(ours.cert_pem(), "junk"), CertError::AuthorityKey(_)));
    }

    #[test]
    fn a_certificate_ends_with_its_authority() {
        let short = Authority::create(&cluster("blue"), Validity::starting_now(DAY)).unwrap();
        let issued = short.issue(&instance("n1"), &[], Validity::starting_now(YEAR)).unwrap();
        let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
        let until = Moment::from_unix_seconds(parse(&der).unwrap().validity().not_after.timestamp());
        assert_eq!(until.as_unix_time().as_secs(), short.until.as_secs());

        let later = UnixTime::since_unix_epoch(Duration::from_secs(short.until.as_secs() + 1));
        let never =
            Validity { from: later, until: UnixTime::since_unix_epoch(Duration::from_secs(later.as_secs() + 9)) };
        assert!(matches!(short.issue(&instance("n1"), &[], never), Err(CertError::AuthorityExpired { .. })));
    }

    #[test]
    fn impossible_spans_and_names_are_refused() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for validity in [
            Validity { from: at(10), until: at(10) },
            Validity { from: at(10), until: at(9) },
            Validity { from: at(0), until: at(LAST_SECOND + 1) },
            Validity::starting_now(Duration::MAX),
        ] {
            assert!(matches!(Authority::create(&cluster("blue"), validity), Err(CertError::Validity { .. })));
        }
        let issue = |names: &[String]| authority().issue(&instance("n1"), names, Validity::starting_now(YEAR));
        assert!(issue(&["host.example".into(), "10.0.0.1".into(), "::1".into()]).is_ok());
        assert!(matches!(issue(&["not a host".into()]), Err(CertError::ExtraName { .. })));
        assert!(matches!(issue(&vec!["a".into(); 65]), Err(CertError::ExtraNames { actual: 65 })));
    }

    #[test]
    fn files_are_private_whole_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let issued = authority().issue(&instance("n1"), &[], Validity::starting_now(YEAR)).unwrap();
        let files = issued.write_files(dir.path()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.key), mode(&files.cert) & 0o600), (0o600, 0o600));
        let written = std::fs::read_to_string(&files.key).unwrap();

        let again = authority().issue(&instance("n1"), &[], Validity::starting_now(YEAR)).unwrap();
        assert!(matches!(again.write_files(dir.path()), Err(CertError::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&files.key).unwrap(), written);

        std::fs::remove_file(&files.key).unwrap();
        assert!(matches!(again.write_files(dir.path()), Err(CertError::Exists { path }) if path == files.cert));
        assert!(matches!(place(&files.cert, "late", 0o600), Err(CertError::Exists { .. })));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["n1.crt"], "no temporary file and no key without its certificate");
        assert!(matches!(again.write_files(&dir.path().join("absent")), Err(CertError::Write { .. })));
    }

    #[test]
    fn moments_read_as_utc() {
        assert_eq!(Moment::from_unix_seconds(1_800_000_000).to_string(), "2027-01-15T08:00:00Z");
        assert_eq!(Moment::from_unix_seconds(-5).to_string(), "1970-01-01T00:00:00Z");
    }
}
