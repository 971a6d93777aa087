//! Both ends over real loopback sockets, with certificates made here.

use std::sync::Mutex as StdMutex;

use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;

use super::*;

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;
/// Generous: the machine that runs this may be busy with something else.
const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "correct horse battery staple, and a nail";
/// An empty SETTINGS frame, as an HTTP/2 server begins.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

fn instance(text: &str) -> InstanceId {
    InstanceId::parse(text).unwrap()
}

fn cluster(text: &str) -> ClusterId {
    ClusterId::parse(text).unwrap()
}

fn authority() -> Authority {
    Authority::create(&cluster("blue"), spanning(-10 * DAY as i64, 100 * DAY as i64)).unwrap()
}

/// From and until in seconds from now.
fn spanning(from: i64, until: i64) -> Validity {
    let at = |offset: i64| {
        let seconds = UnixTime::now().as_secs().checked_add_signed(offset).unwrap();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    };
    Validity { from: at(from), until: at(until) }
}

fn valid() -> Validity {
    spanning(-(HOUR as i64), 60 * DAY as i64)
}

fn expired() -> Validity {
    spanning(-(2 * HOUR as i64), -(HOUR as i64))
}

fn roots(authorities: &[&Authority]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    authorities.iter().for_each(|authority| roots.add(authority.certificate().clone()).unwrap());
    roots
}

/// What `from_files` would make, without its checks: peers do meet certificates that expired while they ran.
fn unchecked(name: PeerName, cert_pem: &str, key_pem: &str, trusted: &[&Authority]) -> PeerSecurity {
    let chain = certificates(cert_pem.as_bytes()).unwrap();
    let certified = certify(chain, PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap()).unwrap();
    let trust = Trust::new(roots(trusted), Some(cluster("blue")), false, provider()).unwrap();
    PeerSecurity::Tls(Arc::new(TlsIdentity::new(name, Source::Secret, trust, certified).unwrap()))
}

fn member_trusting(issuer: &Authority, trusted: &[&Authority], id: &str, validity: Validity) -> PeerSecurity {
    let issued = issuer.issue(&instance(id), &[], validity).unwrap();
    unchecked(issued.name.clone(), &issued.cert_pem, &issued.key_pem, trusted)
}

fn member(issuer: &Authority, id: &str) -> PeerSecurity {
    member_trusting(issuer, &[issuer], id, valid())
}

/// Like [`member`], with another name in the certificate than its trust has.
fn named(issuer: &Authority, cluster_id: Option<&str>, id: &str) -> PeerSecurity {
    let name = PeerName { cluster_id: cluster_id.map(cluster), instance_id: instance(id) };
    let issued = issuer.issue_named(name.clone(), &[], valid()).unwrap();
    unchecked(name, &issued.cert_pem, &issued.key_pem, &[issuer])
}

struct Server {
    addr: SocketAddr,
    accepted: mpsc::Receiver<PeerIdentity>,
    refusals: Arc<Refusals>,
}

impl Server {
    async fn start(security: PeerSecurity) -> Self {
        Self::with_limits(security, HandshakeLimits { deadline: PATIENCE, ..HandshakeLimits::default() }).await
    }

    /// Greets as an HTTP/2 server does, then returns what it is sent.
    async fn with_limits(security: PeerSecurity, limits: HandshakeLimits) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let mut listener = PeerListener::new(tcp, security, limits);
        let refusals = listener.refusals();
        let (report, accepted) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Some(stream) = listener.next().await {
                let mut stream = stream.unwrap();
                let report = report.clone();
                tokio::spawn(async move {
                    report.send(stream.identity().clone()).await.unwrap();
                    if stream.write_all(&SETTINGS).await.is_ok() && stream.flush().await.is_ok() {
                        let (mut read, mut write) = tokio::io::split(stream);
                        tokio::io::copy(&mut read, &mut write).await.ok();
                    }
                });
            }
        });
        Self { addr, accepted, refusals }
    }

    async fn dial(&self, security: &PeerSecurity, expected: Option<&str>) -> Result<PeerStream, ConnectError> {
        connector(security, self.addr.to_string(), expected.map(instance), PATIENCE).connect().await
    }

    async fn accepted(&mut self) -> Option<InstanceId> {
        tokio::time::timeout(PATIENCE, self.accepted.recv()).await.unwrap().unwrap().instance_id
    }

    /// Waits until a connection was refused for this cause, and checks that it is the only one.
    async fn refused(&self, cause: &'static str) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while self.refusals.counts().is_empty() {
            assert!(tokio::time::Instant::now() < until, "nobody was refused; expected {cause}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(self.refusals.counts().into_keys().collect::<Vec<_>>(), [cause]);
    }
}

/// Dials `server` as `client`, wanting `server-1`: the server's cause, and the client's fault or objection.
async fn check_refused_by_server(server: PeerSecurity, client: PeerSecurity, cause: &'static str, told: Objection) {
    let mut server = Server::start(server).await;
    let error = server.dial(&client, Some("server-1")).await.unwrap_err();
    let ConnectError::RefusedByPeer { objection, .. } = error else { panic!("{error}") };
    assert_eq!(objection, told);
    server.refused(cause).await;
    assert!(server.accepted.try_recv().is_err());
}

async fn check_refused_by_client(server: PeerSecurity, client: PeerSecurity, cause: &'static str) -> CertificateFault {
    let mut server = Server::start(server).await;
    let ConnectError::Certificate { fault, .. } = server.dial(&client, Some("server-1")).await.unwrap_err() else {
        panic!("the client had another cause than {cause}");
    };
    assert_eq!(fault.label(), cause);
    server.refused("refused_by_peer").await;
    assert!(server.accepted.try_recv().is_err());
    fault
}

#[tokio::test]
async fn peers_of_one_cluster_know_each_other() {
    let ca = authority();
    let mut server = Server::start(member(&ca, "server-1")).await;
    let mut stream = server.dial(&member(&ca, "a.b..c."), Some("server-1")).await.unwrap();
    assert_eq!(stream.identity().instance_id, Some(instance("server-1")));
    assert_eq!(server.accepted().await, Some(instance("a.b..c.")));

    stream.write_all(b"hello").await.unwrap();
    let mut read = [0; SETTINGS.len() + 5];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read[..SETTINGS.len()], SETTINGS, "what was read ahead is not lost");
    assert_eq!(&read[SETTINGS.len()..], b"hello");
    assert!(server.refusals.counts().is_empty());
}

#[tokio::test]
async fn one_who_joins_takes_any_instance_and_learns_which() {
    let ca = authority();
    let server = Server::start(member(&ca, "server-7")).await;
    let stream = server.dial(&member(&ca, "new"), None).await.unwrap();
    assert_eq!(stream.identity().instance_id, Some(instance("server-7")));
}

#[tokio::test]
async fn two_authorities_are_trusted_while_one_replaces_the_other() {
    let (old, new) = (authority(), authority());
    let both = [&old, &new];
    let mut server = Server::start(member_trusting(&old, &both, "server-1", valid())).await;
    let client = member_trusting(&new, &both, "n2", valid());
    server.dial(&client, Some("server-1")).await.unwrap();
    assert_eq!(server.accepted().await, Some(instance("n2")));
}

#[tokio::test]
async fn an_expired_client_is_refused_and_told_so() {
    let ca = authority();
    let client = member_trusting(&ca, &[&ca], "n2", expired());
    check_refused_by_server(member(&ca, "server-1"), client, "expired_certificate", Objection::Expired).await;
}

#[tokio::test]
async fn a_client_before_its_time_is_refused() {
    let ca = authority();
    let client = member_trusting(&ca, &[&ca], "n2", spanning(HOUR as i64, DAY as i64));
    check_refused_by_server(member(&ca, "server-1"), client, "certificate_not_yet_valid", Objection::Expired).await;
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused_and_told_so() {
    let (ca, other) = (authority(), authority());
    let client = member_trusting(&other, &[&ca], "n2", valid());
    check_refused_by_server(member(&ca, "server-1"), client, "unknown_authority", Objection::UnknownAuthority).await;
}

#[tokio::test]
async fn a_client_of_another_cluster_under_the_same_authority_is_refused() {
    let ca = authority();
    let client = named(&ca, Some("green"), "n2");
    check_refused_by_server(member(&ca, "server-1"), client, "wrong_cluster", Objection::WrongName).await;
}

#[tokio::test]
async fn only_a_secret_vouches_for_a_certificate_without_a_cluster() {
    let ca = authority();
    let client = named(&ca, None, "n2");
    check_refused_by_server(member(&ca, "server-1"), client, "wrong_cluster", Objection::WrongName).await;
}

#[tokio::test]
async fn an_expired_server_is_refused_with_the_date() {
    let ca = authority();
    let server = member_trusting(&ca, &[&ca], "server-1", expired());
    let fault = check_refused_by_client(server, member(&ca, "n2"), "expired_certificate").await;
    assert!(matches!(fault, CertificateFault::Expired { not_after: Some(at) } if at < UnixTime::now().into()));
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (ca, other) = (authority(), authority());
    let server = member_trusting(&other, &[&ca, &other], "server-1", valid());
    check_refused_by_client(server, member(&ca, "n2"), "unknown_authority").await;
}

#[tokio::test]
async fn another_instance_than_the_one_dialled_is_refused() {
    let ca = authority();
    let fault = check_refused_by_client(member(&ca, "server-2"), member(&ca, "n2"), "wrong_instance").await;
    let (expected, presented) = (instance("server-1"), instance("server-2"));
    assert_eq!(fault, CertificateFault::WrongInstance { expected, presented });
}

#[tokio::test]
async fn a_server_of_another_cluster_is_refused() {
    let ca = authority();
    let fault =
        check_refused_by_client(named(&ca, Some("green"), "server-1"), member(&ca, "n2"), "wrong_cluster").await;
    let expected = CertificateFault::WrongCluster { expected: cluster("blue"), presented: Some(cluster("green")) };
    assert_eq!(fault, expected);
}

/// A chain as an operator's own authority might make it: the member, and the authority to trust.
fn foreign_certificate(uris: &[&str], purposes: &[ExtendedKeyUsagePurpose]) -> PeerSecurity {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.extended_key_usages = purposes.to_vec();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone()).unwrap();
    let chain = vec![certificate.into()];
    let certified = certify(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap();
    let trust = Trust::new(roots, Some(cluster("blue")), false, provider()).unwrap();
    let name = PeerName { cluster_id: None, instance_id: instance("server-1") };
    PeerSecurity::Tls(Arc::new(TlsIdentity::new(name, Source::Secret, trust, certified).unwrap()))
}

#[tokio::test]
async fn certificates_of_an_operators_own_authority_serve_as_well() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let own = foreign_certificate(&["spiffe://elsewhere/x", "openclaw://blue/server-1"], &[ServerAuth, ClientAuth]);
    let mut server = Server::start(own.clone()).await;
    server.dial(&own, Some("server-1")).await.unwrap();
    assert_eq!(server.accepted().await, Some(instance("server-1")));
}

#[tokio::test]
async fn certificates_without_one_name_or_without_the_purpose_are_refused() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let named = "openclaw://blue/server-1";
    for (uris, purposes, cause) in [
        (vec!["spiffe://blue/server-1"], vec![ServerAuth, ClientAuth], "no_instance_name"),
        (vec![named, "openclaw://blue/server-2"], vec![ServerAuth, ClientAuth], "no_instance_name"),
        (vec!["openclaw://blue/Server/1"], vec![ServerAuth, ClientAuth], "no_instance_name"),
        (vec![named], vec![ClientAuth], "wrong_purpose"),
    ] {
        let own = foreign_certificate(&uris, &purposes);
        check_refused_by_client(own.clone(), own, cause).await;
    }
    let own = foreign_certificate(&[named], &[ServerAuth]);
    check_refused_by_server(own.clone(), own, "wrong_purpose", Objection::WrongPurpose).await;
}

/// A client that trusts `ca` and shows no certificate.
fn anonymous(security: &PeerSecurity, version: &'static rustls::SupportedProtocolVersion) -> TlsConnector {
    let PeerSecurity::Tls(identity) = security else { panic!("no TLS") };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(identity.trust.clone(), None)))
        .with_no_client_auth();
    Arc::new(config).into()
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_and_told_so() {
    let security = member(&authority(), "server-1");
    let server = Server::start(security.clone()).await;
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let connector = anonymous(&security, &rustls::version::TLS13);
    let mut stream = connector.connect("any.example".try_into().unwrap(), tcp).await.unwrap();
    let error = stream.read(&mut [0; 9]).await.unwrap_err();
    let Some(rustls::Error::AlertReceived(alert)) = refusals::tls_error(&error) else { panic!("{error}") };
    assert_eq!(Objection::from(*alert), Objection::NoCertificate);
    server.refused("no_certificate").await;
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let security = member(&authority(), "server-1");
    let server = Server::start(security.clone()).await;
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let connector = anonymous(&security, &rustls::version::TLS12);
    connector.connect("any.example".try_into().unwrap(), tcp).await.unwrap_err();
    server.refused("handshake_failed").await;
}

#[tokio::test]
async fn plaintext_to_a_tls_port_is_refused_and_its_sender_learns_why() {
    let server = Server::start(member(&authority(), "server-1")).await;
    let mut stream = server.dial(&PeerSecurity::Plaintext, Some("server-1")).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let error = stream.read(&mut [0; 9]).await.unwrap_err();
    assert!(error.to_string().contains("speaks TLS"), "{error}");
    server.refused("plaintext_to_tls").await;
}

#[tokio::test]
async fn tls_to_a_plaintext_port_is_refused_and_its_sender_learns_why() {
    let server = Server::start(PeerSecurity::Plaintext).await;
    let error = server.dial(&member(&authority(), "n2"), Some("server-1")).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotTls { .. }), "{error}");
    server.refused("tls_to_plaintext").await;
}

#[tokio::test]
async fn plaintext_on_both_ends_proves_nobody() {
    let mut server = Server::start(PeerSecurity::Plaintext).await;
    let stream = server.dial(&PeerSecurity::Plaintext, Some("server-1")).await.unwrap();
    assert_eq!(stream.identity().instance_id, None);
    assert_eq!(server.accepted().await, None);
}

#[tokio::test]
async fn a_slow_handshake_is_closed_at_its_deadline() {
    let limits = HandshakeLimits { deadline: Duration::from_millis(100), ..HandshakeLimits::default() };
    let server = Server::with_limits(member(&authority(), "server-1"), limits).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    // The first bytes of a handshake record, and no more.
    silent.write_all(&[0x16, 3, 1]).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, silent.read(&mut [0; 9])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    server.refused("handshake_timed_out").await;
}

#[tokio::test]
async fn silent_connections_do_not_keep_a_peer_out() {
    let ca = authority();
    let limits = HandshakeLimits { deadline: Duration::from_secs(600), concurrent: 4 };
    let mut server = Server::with_limits(member(&ca, "server-1"), limits).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(server.addr).await.unwrap());
    }
    server.dial(&member(&ca, "n2"), Some("server-1")).await.unwrap();
    assert_eq!(server.accepted().await, Some(instance("n2")));
    assert_eq!(server.refusals.counts()["handshake_displaced"], 37, "the peer was the 41st, and four had room");
    let read = tokio::time::timeout(PATIENCE, silent[0].read(&mut [0; 9])).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "the oldest was closed: {read:?}");
}

#[tokio::test]
async fn a_probe_that_connects_and_leaves_is_counted_as_such() {
    let server = Server::start(member(&authority(), "server-1")).await;
    drop(TcpStream::connect(server.addr).await.unwrap());
    server.refused("closed").await;
}

#[tokio::test]
async fn the_dialling_end_names_what_it_waited_for() {
    let ca = authority();
    let client = member(&ca, "n2");
    let brief = Duration::from_millis(100);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let error = connector(&client, addr.clone(), None, brief).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { step: "shaking hands", .. }), "{error}");
    assert!(error.retryable());
    drop(silent);
    let error = connector(&client, addr, None, PATIENCE).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");

    let error = connector(&client, "no-port-here", None, PATIENCE).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error}");

    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap().to_string();
    let mut mute = PeerListener::new(tcp, member(&ca, "server-1"), HandshakeLimits::default());
    let accepting = tokio::spawn(async move {
        let stream = mute.next().await;
        std::future::pending::<()>().await;
        drop(stream);
    });
    let error = connector(&client, addr, None, Duration::from_secs(2)).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { step: "waiting for its first bytes", .. }), "{error}");
    accepting.abort();
}

fn secret(cluster_id: Option<&str>, id: &str, secret: &str) -> PeerSecurity {
    PeerSecurity::from_secret(cluster_id.map(cluster).as_ref(), &instance(id), secret).unwrap()
}

#[tokio::test]
async fn the_same_secret_is_the_same_authority() {
    let mut server = Server::start(secret(Some("blue"), "server-1", SECRET)).await;
    // As read from a file that ends with a line break.
    let same = format!("{SECRET}\n");
    server.dial(&secret(Some("blue"), "n2", &same), Some("server-1")).await.unwrap();
    assert_eq!(server.accepted().await, Some(instance("n2")));
}

#[tokio::test]
async fn another_secret_is_an_unknown_authority_at_both_ends() {
    let (ours, theirs) = (secret(Some("blue"), "server-1", SECRET), secret(Some("blue"), "n2", &SECRET.to_uppercase()));
    check_refused_by_client(ours, theirs, "unknown_authority").await;

    // A client that would overlook the server's authority is refused by the server.
    let ours = secret(Some("blue"), "server-1", SECRET);
    let PeerSecurity::Tls(server) = &ours else { panic!("no TLS") };
    let other = Authority::from_key(authority_key(&SECRET.to_uppercase()).unwrap(), valid()).unwrap();
    let name = PeerName { cluster_id: Some(cluster("blue")), instance_id: instance("n2") };
    let issued = other.issue_named(name.clone(), &[], valid()).unwrap();
    let certified = certify(
        certificates(issued.cert_pem.as_bytes()).unwrap(),
        PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
    )
    .unwrap();
    let trust = Trust::new(
        roots(&[&Authority::from_key(authority_key(SECRET).unwrap(), valid()).unwrap()]),
        server.name.cluster_id.clone(),
        true,
        provider(),
    );
    let client = TlsIdentity::new(name, Source::Secret, trust.unwrap(), certified).unwrap();
    let client = PeerSecurity::Tls(Arc::new(client));
    check_refused_by_server(ours, client, "unknown_authority", Objection::UnknownAuthority).await;
}

#[tokio::test]
async fn clusters_with_one_secret_are_kept_apart() {
    let (ours, theirs) = (secret(Some("blue"), "server-1", SECRET), secret(Some("green"), "n2", SECRET));
    check_refused_by_client(ours, theirs, "wrong_cluster").await;
}

#[tokio::test]
async fn with_the_secret_one_joins_a_cluster_whose_id_it_does_not_know() {
    let mut server = Server::start(secret(Some("blue"), "server-1", SECRET)).await;
    let joiner = secret(None, "new", SECRET);
    server.dial(&joiner, None).await.unwrap();
    assert_eq!(server.accepted().await, Some(instance("new")));

    // And the leader reaches the one that joins, which may still not know.
    let mut listening = Server::start(joiner).await;
    listening.dial(&secret(Some("blue"), "server-1", SECRET), Some("new")).await.unwrap();
    assert_eq!(listening.accepted().await, Some(instance("server-1")));
}

#[test]
fn short_secrets_are_refused_by_characters() {
    for (text, actual) in [("", 0), (&SECRET[..31], 31), (&format!("{:>40}", "x"), 1), (&"é".repeat(31), 31)] {
        let error = PeerSecurity::from_secret(None, &instance("n1"), text).unwrap_err();
        assert!(matches!(error, SecurityError::ShortSecret { actual: found } if found == actual), "{error}");
        assert!(error.to_string().starts_with("cluster.peer.secret has"), "{error}");
    }
    assert!(PeerSecurity::from_secret(None, &instance("n1"), &SECRET[..32]).is_ok());
}

/// Instances of two releases know each other only as long as this holds.
#[test]
fn the_key_of_a_secret_never_changes() {
    let key = authority_key(SECRET).unwrap();
    let hex: String = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "046e0ddf6a883cfeb36b4d1cebb88a894fdefbfea141be4a70a7c1023dce70cc");
}

/// Files of one instance in their own folder.
struct Folder {
    dir: tempfile::TempDir,
    ca: Authority,
    files: TlsFiles,
}

impl Folder {
    fn new() -> Self {
        let (dir, ca) = (tempfile::tempdir().unwrap(), authority());
        let own = ca.issue(&instance("n1"), &[], valid()).unwrap().write_files(dir.path()).unwrap();
        let files = TlsFiles { ca: ca.write_files(dir.path()).unwrap().cert, cert: own.cert, key: own.key };
        Self { dir, ca, files }
    }

    /// Replaces certificate and key.
    fn install(&self, issued: &certs::IssuedCert) {
        std::fs::write(&self.files.cert, &issued.cert_pem).unwrap();
        std::fs::write(&self.files.key, &issued.key_pem).unwrap();
    }

    fn load(&self) -> Result<PeerSecurity, SecurityError> {
        PeerSecurity::from_files(Some(&cluster("blue")), &instance("n1"), &self.files)
    }

    /// Loading fails, and the text names the setting and the file.
    fn check(&self, setting: &str, file: &Path, says: &str) {
        let text = self.load().unwrap_err().to_string();
        assert!(text.starts_with(&format!("{setting}: ")), "{text}");
        assert!(text.contains(&file.display().to_string()), "{text}");
        assert!(text.contains(says), "{text:?} does not say {says:?}");
    }
}

#[tokio::test]
async fn files_make_a_peer() {
    let folder = Folder::new();
    let security = folder.load().unwrap();
    let mut server = Server::start(security.clone()).await;
    server.dial(&member(&folder.ca, "n2"), Some("n1")).await.unwrap();
    assert_eq!(server.accepted().await, Some(instance("n2")));

    let joining = PeerSecurity::from_files(None, &instance("n1"), &folder.files).unwrap();
    assert_eq!(joining.cluster_id(), Some(&cluster("blue")), "learned from the certificate");
    assert!(security.warnings().is_empty(), "{:?}", security.warnings());
    let text = security.describe();
    assert!(text.starts_with("mutual TLS with") && text.contains("n1 of cluster blue, valid until 20"), "{text}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    for (setting, pick) in [(CA_KEY, 0), (CERT_KEY, 1), (KEY_KEY, 2)] {
        let folder = Folder::new();
        let file = [&folder.files.ca, &folder.files.cert, &folder.files.key][pick];
        std::fs::write(file, "x".repeat(MAX_FILE_BYTES as usize + 1)).unwrap();
        folder.check(setting, file, "larger than 1048576 bytes");
        std::fs::write(file, "not PEM").unwrap();
        folder.check(setting, file, "in PEM form");
        let damaged = ["CERTIFICATE", "CERTIFICATE", "PRIVATE KEY"][pick];
        std::fs::write(file, format!("-----BEGIN {damaged}-----\nAAAA\n-----END {damaged}-----\n")).unwrap();
        folder.check(setting, file, "");
        std::fs::remove_file(file).unwrap();
        folder.check(setting, file, "cannot read");
    }
}

#[test]
fn files_that_do_not_fit_each_other_are_named() {
    let folder = Folder::new();
    let other = folder.ca.issue(&instance("n1"), &[], valid()).unwrap();
    std::fs::write(&folder.files.key, &other.key_pem).unwrap();
    folder.check(KEY_KEY, &folder.files.key, "is not the key of the certificate in");

    let folder = Folder::new();
    std::fs::write(&folder.files.ca, authority().cert_pem()).unwrap();
    folder.check(CERT_KEY, &folder.files.ca, "is not signed by an authority in cluster.peer.tls.ca");
}

#[test]
fn certificates_that_are_not_ours_are_named() {
    let folder = Folder::new();
    folder.install(&folder.ca.issue(&instance("n2"), &[], valid()).unwrap());
    folder.check(CERT_KEY, &folder.files.cert, "was issued for n2, but this is n1");

    let named = |cluster_id| PeerName { cluster_id, instance_id: instance("n1") };
    folder.install(&folder.ca.issue_named(named(Some(cluster("green"))), &[], valid()).unwrap());
    folder.check(CERT_KEY, &folder.files.cert, "was issued for cluster green, but this instance is of blue");

    folder.install(&folder.ca.issue_named(named(None), &[], valid()).unwrap());
    folder.check(CERT_KEY, &folder.files.cert, "names no cluster");

    std::fs::copy(&folder.files.ca, &folder.files.cert).unwrap();
    std::fs::copy(folder.dir.path().join("ca.key"), &folder.files.key).unwrap();
    folder.check(CERT_KEY, &folder.files.cert, "");
}

#[test]
fn certificates_outside_their_time_are_named_with_the_date() {
    let folder = Folder::new();
    folder.install(&folder.ca.issue(&instance("n1"), &[], expired()).unwrap());
    folder.check(CERT_KEY, &folder.files.cert, "expired on 20");
    folder.install(&folder.ca.issue(&instance("n1"), &[], spanning(HOUR as i64, DAY as i64)).unwrap());
    folder.check(CERT_KEY, &folder.files.cert, "is not valid before 20");
}

#[test]
fn a_certificate_near_its_end_and_an_open_key_are_warned_of() {
    let folder = Folder::new();
    std::fs::set_permissions(&folder.files.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let security = folder.load().unwrap();
    let after = |days| UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * DAY - HOUR));
    let open = "readable by every user";
    for (days, expected) in [(29, vec![open]), (31, vec![", in 29 days", open]), (61, vec!["expired on", open])] {
        let warnings = security.warnings_at(after(days));
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        assert!(warnings.iter().zip(expected).all(|(text, part)| text.contains(part)), "{warnings:?}");
    }
    assert!(security.certificate_until().unwrap() > UnixTime::now().into());
}

#[test]
fn every_kind_describes_itself_without_the_secret() {
    assert_eq!(PeerSecurity::Plaintext.describe(), "plaintext, on loopback only");
    let from_secret = secret(Some("blue"), "n1", SECRET);
    assert_eq!(from_secret.describe(), "mutual TLS from the shared secret, as n1 of cluster blue");
    assert!(!format!("{from_secret:?}").contains(SECRET));
    assert!(from_secret.warnings().is_empty());
}

#[test]
fn plaintext_is_for_loopback_alone() {
    for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(PeerSecurity::plaintext(loopback.parse().unwrap()).is_ok(), "{loopback}");
    }
    for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1]:1"] {
        let error = PeerSecurity::plaintext(open.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("cluster.peer.tls.ca"), "{error}");
    }
}

/// Keeps the fields of warnings that this thread logs.
#[derive(Clone, Default)]
struct Lines(Arc<StdMutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("openclaw_raft") && *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_refusal_is_one_log_line_with_its_cause_however_often_it_is_repeated() {
    let lines = Lines::default();
    // Two, so that another test which is the first to come by the log line asks all there are whether anybody wants it, and not
    // its own thread alone, where nobody does.
    let _another = tracing::Dispatch::new(Lines::default());
    let _here = tracing::subscriber::set_default(lines.clone());
    let ca = authority();
    let server = Server::start(member(&ca, "server-1")).await;
    let client = member_trusting(&ca, &[&ca], "n2", expired());
    for _ in 0..3 {
        server.dial(&client, None).await.unwrap_err();
    }
    assert_eq!(server.refusals.counts()["expired_certificate"], 3);
    let lines = lines.0.lock().unwrap().clone();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["message=peer connection refused", "remote=127.0.0.1:", "cause=\"expired_certificate\"", "expired (20"]
    {
        assert!(lines[0].contains(part), "{} in {lines:?}", part);
    }
}

/// Answers with the caller's name, as tonic passes it on.
#[derive(Clone)]
struct WhoAmI;

impl tower::Service<tonic::codegen::http::Request<tonic::body::Body>> for WhoAmI {
    type Response = tonic::codegen::http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::codegen::http::Request<tonic::body::Body>) -> Self::Future {
        let caller = request.extensions().get::<PeerIdentity>().unwrap().instance_id.as_ref().unwrap();
        let answer = tonic::codegen::http::Response::builder().header("caller", caller.as_str());
        std::future::ready(Ok(answer.body(tonic::body::Body::empty()).unwrap()))
    }
}

#[tokio::test]
async fn tonic_serves_and_dials_through_both_ends() {
    let ca = authority();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap().to_string();
    let listener = PeerListener::new(tcp, member(&ca, "server-1"), HandshakeLimits::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        tonic::transport::Server::builder().serve_with_incoming_shutdown(WhoAmI, listener, stopped).await
    });

    let endpoint = tonic::transport::Endpoint::from_static("http://peer");
    let good = connector(&member(&ca, "n2"), addr.clone(), Some(instance("server-1")), PATIENCE);
    let mut channel = endpoint.connect_with_connector(good).await.unwrap();
    let request = tonic::codegen::http::Request::post("http://peer/test.WhoAmI/Ask");
    let request = request.body(tonic::body::Body::empty()).unwrap();
    std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx)).await.unwrap();
    let answer = tower::Service::call(&mut channel, request).await.unwrap();
    assert_eq!(answer.headers()["caller"], "n2");

    let refused = connector(&member_trusting(&ca, &[&ca], "n3", expired()), addr, None, PATIENCE);
    let error = endpoint.connect_with_connector(refused.clone()).await.unwrap_err();
    let found = ConnectError::in_chain(&error).unwrap();
    assert!(matches!(found, ConnectError::RefusedByPeer { objection: Objection::Expired, .. }), "{found}");

    // A lazy channel reports it with the call that needed the connection, which is how peers see it.
    let mut lazy = endpoint.connect_with_connector_lazy(refused);
    let request = tonic::codegen::http::Request::post("http://peer/test.WhoAmI/Ask");
    let request = request.body(tonic::body::Body::empty()).unwrap();
    std::future::poll_fn(|cx| tower::Service::poll_ready(&mut lazy, cx)).await.unwrap();
    let error = tower::Service::call(&mut lazy, request).await.unwrap_err();
    let status = tonic::Status::from_error(error.into());
    assert!(matches!(ConnectError::in_chain(&status), Some(ConnectError::RefusedByPeer { .. })), "{status:?}");

    drop((channel, lazy));
    stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap().unwrap();
}
