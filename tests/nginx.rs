//! The Nginx files that we publish: accepted by Nginx as they stand, and doing what their comments promise.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

fn published(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx").join(name)).unwrap()
}

fn nginx() -> Option<Command> {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "nginx is not installed, and CI needs it");
        eprintln!("skipped: nginx is not installed");
        return None;
    }
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-g", "daemon off;"]);
    Some(command)
}

/// `text` with other addresses than the published names, which resolve only in the published network.
fn addressed(text: &str, listen: (&str, SocketAddr), instances: [SocketAddr; 3]) -> String {
    let mut text = text.replace(listen.0, &format!("listen {};", listen.1));
    for (n, instance) in (1..).zip(instances) {
        text = text.replace(&format!("openclaw-{n}:3000"), &instance.to_string());
    }
    text
}

fn write_config(dir: &Path, http: &str, main: &str) -> std::path::PathBuf {
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};\n", dir.display()))
        .concat();
    // Debian keeps the stream module in a file of its own, which its nginx.conf loads.
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.exists() { format!("load_module {};\n", module.display()) } else { String::new() };
    let config = format!(
        "{load}worker_processes 1;\npid {}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temp}{http}\n}}\n{main}\n",
        dir.display()
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    path
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn nginx_accepts_the_http_file() {
    let Some(mut nginx) = nginx() else { return };
    let dir = tempfile::tempdir().unwrap();
    let http = addressed(&published("openclaw.conf"), ("listen 80;", free()), [free(), free(), free()]);
    let output = nginx.arg("-t").arg("-c").arg(write_config(dir.path(), &http, "")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("[warn]"), "{said}");
}

#[test]
fn nginx_accepts_the_stream_file() {
    let Some(mut nginx) = nginx() else { return };
    let dir = tempfile::tempdir().unwrap();
    let stream = addressed(&published("stream.conf"), ("listen 3000;", free()), [free(), free(), free()]);
    let output = nginx.arg("-t").arg("-c").arg(write_config(dir.path(), "", &stream)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unknown directive \"stream\"") {
        assert!(std::env::var_os("CI").is_none(), "this nginx has no stream module, and CI needs it");
        eprintln!("skipped: this nginx has no stream module (Debian: libnginx-mod-stream)");
        return;
    }
    assert!(output.status.success() && !said.contains("[warn]"), "{said}");
}

/// What one fake instance was asked.
type Heads = Receiver<String>;

/// Reads each request, tells its head, and answers `answer`; without one it closes the connection, as a process that is
/// killed does.
fn instance(answer: Option<&'static str>) -> (SocketAddr, Heads) {
    instance_after(Duration::ZERO, answer)
}

/// The same, after it has worked on the request for some time.
fn instance_after(work: Duration, answer: Option<&'static str>) -> (SocketAddr, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, seen) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).unwrap();
            if heads.send(head).is_err() {
                return;
            }
            std::thread::sleep(work);
            if let Some(answer) = answer {
                (&stream).write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    (address, seen)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // SIGQUIT or SIGTERM would let the master tell its worker; a killed master leaves it behind.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let started = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(started.elapsed() < DEADLINE, "nginx does not listen: {error}"),
        }
        std::thread::yield_now();
    }
}

fn post(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = connect(address);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: h:80\r\n{headers}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// The seconds of a directive that stands once in the file.
fn seconds(file: &str, directive: &str) -> Duration {
    let mut values = file.lines().filter_map(|line| line.trim().strip_prefix(directive)?.trim().strip_suffix("s;"));
    let value = values.next().unwrap().parse().unwrap();
    assert_eq!(values.next(), None, "{directive}");
    Duration::from_secs(value)
}

#[test]
fn a_chat_whose_instance_dies_after_a_long_wait_is_answered_by_another() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let file = published("openclaw.conf");
    // As long as a chat may take, and not so long that a second instance is waited for in vain after one that hangs.
    let limit = seconds(&file, "proxy_next_upstream_timeout ");
    assert!(limit > openclaw_config::gateway::Limits::default().chat_request, "{limit:?}");
    assert!(limit < seconds(&file, "proxy_read_timeout "), "{limit:?}");

    // It counts from the request's beginning: with a shorter one there is no other try, with the published one there is.
    let shorter =
        file.replace(&format!("proxy_next_upstream_timeout {}s;", limit.as_secs()), "proxy_next_upstream_timeout 1s;");
    assert_ne!(shorter, file);
    for (file, status) in [(shorter, "502"), (file, "200")] {
        let Some(mut nginx) = nginx() else { return };
        let (dies, dies_saw) = instance_after(Duration::from_millis(1500), None);
        let (healthy, _healthy_saw) = instance(Some(OK));
        let (dir, address) = (tempfile::tempdir().unwrap(), free());
        let http = addressed(&file, ("listen 80;", address), [dies, healthy, healthy]);
        let _running = Running(nginx.arg("-c").arg(write_config(dir.path(), &http, "")).spawn().unwrap());
        let answer = post(address, "/api/v1/chat", "");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        dies_saw.recv_timeout(DEADLINE).unwrap();
    }
}

#[test]
fn a_killed_instance_and_a_503_cost_no_client_an_error_and_no_write_twice() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let Some(mut nginx) = nginx() else { return };
    let (killed, killed_saw) = instance(None);
    let (draining, draining_saw) = instance(Some(REFUSED));
    let (healthy, healthy_saw) = instance(Some(OK));
    let dir = tempfile::tempdir().unwrap();
    let address = free();
    let http = addressed(&published("openclaw.conf"), ("listen 80;", address), [killed, draining, healthy]);
    let _running = Running(nginx.arg("-c").arg(write_config(dir.path(), &http, "")).spawn().unwrap());

    let answer = post(address, "/api/v1/chat", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let heads = [killed_saw, draining_saw, healthy_saw].map(|seen| seen.recv_timeout(DEADLINE).unwrap());
    let keys = heads.each_ref().map(|head| header(head, "idempotency-key").unwrap());
    assert!(keys[0].len() == 32 && keys[0] == keys[1] && keys[1] == keys[2], "{keys:?}");
    assert_eq!(header(&heads[2], "host"), Some("h:80"), "the port stays");
    assert_eq!(header(&heads[2], "connection"), None, "kept alive");

    // The caller's own key is left alone, on the stream's location too.
    let (one, saw) = instance(Some(OK));
    let dir = tempfile::tempdir().unwrap();
    let address = free();
    let http = addressed(&published("openclaw.conf"), ("listen 80;", address), [one, one, one]);
    let mut nginx = Command::new("nginx");
    nginx.args(["-e", "stderr", "-g", "daemon off;"]);
    let _running = Running(nginx.arg("-c").arg(write_config(dir.path(), &http, "")).spawn().unwrap());
    let answer = post(address, "/api/v1/chat/stream", "Idempotency-Key: mine\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(header(&saw.recv_timeout(DEADLINE).unwrap(), "idempotency-key"), Some("mine"));
}
