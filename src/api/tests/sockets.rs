//! Real sockets: slow clients, too many of them, and the admin socket.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, sleep};

use super::*;

struct Served {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn served(instance: &Instance, options: server::Options) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serve = server::serve(listener, instance.router.clone(), options, instance.metrics.clone(), shutdown.clone());
    Served { address, shutdown, task: tokio::spawn(serve) }
}

fn quick() -> server::Options {
    server::Options {
        header_read: Duration::from_millis(200),
        write_stall: Duration::from_millis(300),
        ..server::Options::from(&gateway::Limits::default())
    }
}

/// Whether the peer closes the connection soon, whatever it says before.
async fn closes(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut said = Vec::new();
    match timeout(SOON, stream.read_to_end(&mut said)).await.expect("the connection to be closed") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test]
async fn slow_clients_do_not_hold_connections() {
    let instance = Setup::new(Paced::new(1)).one();
    let served = served(&instance, quick()).await;
    for said in [
        "",
        "P",
        "PRI * HTTP/2.0",
        "POST",
        "GET /healthz HTTP/1.1\r\nHost: loc",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
    ] {
        let mut client = TcpStream::connect(served.address).await.unwrap();
        client.write_all(said.as_bytes()).await.unwrap();
        closes(&mut client).await;
    }
    // One byte at a time is no better.
    let mut client = TcpStream::connect(served.address).await.unwrap();
    let (mut reader, mut writer) = client.split();
    let drip = async {
        for byte in "GET /healthz HTTP/1.1\r\nHost: localhost\r\n".bytes().cycle() {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = closes(&mut reader) => {}
        () = drip => {}
    }
    let mut client = TcpStream::connect(served.address).await.unwrap();
    client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(closes(&mut client).await.starts_with("HTTP/1.1 200"));
    let mut client = TcpStream::connect(served.address).await.unwrap();
    client.write_all(b"\x16\x03\x01 this is not HTTP at all\r\n\r\n").await.unwrap();
    closes(&mut client).await;
    let mut client = TcpStream::connect(served.address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nx-long: {}\r\n\r\n", "x".repeat(64 << 10));
    client.write_all(long.as_bytes()).await.ok();
    let refused = closes(&mut client).await;
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
    served.shutdown.cancel();
    timeout(SOON, served.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_closed_and_continues_elsewhere() {
    let model = Paced::new(40_000);
    let instance = Setup::new(model.clone()).one();
    let served = served(&instance, quick()).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(served.address).await.unwrap();
    let request = r#"{"message":"x"}"#;
    let head = format!(
        "POST /api/v1/chat/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        request.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let until = Instant::now() + SOON;
    while instance.metrics.http_streams.get() == 0 {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(5)).await;
    }
    // Far more than socket buffers hold, one event at a time, while nobody reads.
    while instance.metrics.http_streams.get() > 0 {
        assert!(Instant::now() < until, "the stream was not closed");
        model.permits.add_permits(100);
        sleep(Duration::from_millis(2)).await;
    }
    model.permits.add_permits(40_000);
    let session = async {
        loop {
            let session = instance.json("/api/v1/sessions/agent:main:main").await;
            if session["headSeq"] == 2 {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, session).await.expect("the turn goes on");
    served.shutdown.cancel();
    served.task.await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let instance = Setup::new(Paced::new(1)).one();
    let served = served(&instance, server::Options { max_connections: 2, header_read: SOON, ..quick() }).await;
    let held = [TcpStream::connect(served.address).await.unwrap(), TcpStream::connect(served.address).await.unwrap()];
    let until = Instant::now() + SOON;
    while instance.metrics.http_connections.get() < 2 {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(2)).await;
    }
    let mut third = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(closes(&mut third).await, "");
    assert_eq!(instance.metrics.http_refused_connections.get(), 1);
    drop(held);
    served.shutdown.cancel();
    timeout(SOON, served.task).await.expect("an end in time").unwrap();
}

#[tokio::test]
async fn the_admin_socket_is_for_its_owner_and_needs_no_token() {
    use std::os::unix::fs::PermissionsExt;
    let instance = Setup::new(Paced::new(1)).with_token().one();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    for _ in 0..2 {
        // The second time the first one's socket file is there, with nobody behind it.
        let listener = server::bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let shutdown = CancellationToken::new();
        let router = operator_router(gateway_of(&instance));
        let task =
            tokio::spawn(server::serve_unix(listener, router, quick(), instance.metrics.clone(), shutdown.clone()));
        let mut client = UnixStream::connect(&path).await.unwrap();
        client
            .write_all(b"GET /api/v1/cluster HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        assert!(closes(&mut client).await.starts_with("HTTP/1.1 200"));
        shutdown.cancel();
        timeout(SOON, task).await.unwrap().unwrap();
    }
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(server::bind_unix(&file).is_err());
}

/// Connects and asks again and again until nobody listens any more; counts the answers. Any other end is one too many.
fn ask_until_refused(address: SocketAddr, answered: &std::sync::atomic::AtomicU64) -> Result<(), String> {
    use std::io::{Read, Write};
    loop {
        let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, SOON) else { return Ok(()) };
        let mut said = Vec::new();
        let exchange = stream
            .set_read_timeout(Some(SOON))
            .and_then(|()| stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
            .and_then(|()| stream.read_to_end(&mut said));
        exchange.map_err(|error| format!("a connection was made and lost: {error}"))?;
        if !said.starts_with(b"HTTP/1.1 200") {
            return Err(format!("answered with {:?}", String::from_utf8_lossy(&said)));
        }
        answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_closes_loses_no_connection() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let instance = Setup::new(Paced::new(1)).one();
    for round in 0..8 {
        let served = served(&instance, quick()).await;
        let (answered, address) = (Arc::new(AtomicU64::new(0)), served.address);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let answered = answered.clone();
                tokio::task::spawn_blocking(move || ask_until_refused(address, &answered))
            })
            .collect();
        let until = Instant::now() + SOON;
        while answered.load(Ordering::Relaxed) < 100 {
            assert!(Instant::now() < until);
            sleep(Duration::from_millis(1)).await;
        }
        served.shutdown.cancel();
        timeout(SOON, served.task).await.expect("an end in time").unwrap();
        for client in clients {
            assert_eq!(timeout(SOON, client).await.unwrap().unwrap(), Ok(()), "round {round}");
        }
    }
}
