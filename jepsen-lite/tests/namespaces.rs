//! The environment of network namespaces, for real: what a cut and a shape do to packets, that nothing is left when the
//! program is killed, and a cluster whose leader is cut off. Needs root, `ip`, `nft` and `unshare`; without them it says that
//! it is skipped.
//!
//! A test cannot enter namespaces, which are of a whole process. So it starts this binary again in them with one of the
//! ignored tests below, which are not for calling by hand.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jepsen_lite::lab::enter::{self, Entered};
use jepsen_lite::lab::{self, Lab, Options, Shape};
use jepsen_lite::network::Network;
use nix::sched::{CloneFlags, setns};

/// More than a busy machine takes for anything here.
const PATIENCE: Duration = Duration::from_secs(30);
/// So long nothing arrives before it counts as cut.
const SILENCE: Duration = Duration::from_millis(200);

/// Whether these tests can run here.
fn possible() -> bool {
    let Err(error) = enter::possible() else { return true };
    let must = std::env::var_os("CI").is_some() && nix::unistd::geteuid().is_root();
    assert!(!must, "{error:#}");
    eprintln!("skipped: {error:#}");
    false
}

/// This test binary in namespaces, with one of its ignored tests.
fn inside(test: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    enter::command(&program, ["--ignored", "--exact", test, "--nocapture", "--test-threads=1"]).unwrap()
}

#[test]
fn cuts_and_shapes_do_to_packets_what_they_say() {
    if possible() {
        assert!(inside("inside_cuts_and_shapes").status().unwrap().success());
    }
}

#[test]
fn nothing_is_left_when_the_controller_is_killed() {
    if !possible() {
        return;
    }
    let mut child = inside("inside_starts_a_program_and_waits").stdout(Stdio::piped()).spawn().unwrap();
    // It prints a word that only the program it started has among its arguments.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mark = lines.find_map(|line| line.split_once("mark=").map(|(_, mark)| mark.to_owned())).unwrap();
    // It is `ip` first, and in the moment of each exec it has no arguments.
    until("the program is seen from outside", || runs(&mark));
    // SIGKILL, so nothing can tidy up.
    child.kill().unwrap();
    child.wait().unwrap();
    until("it ends with the namespaces", || !runs(&mark));
    assert!(!Path::new("/run/netns/node-1").exists(), "names of namespaces are private");
}

#[test]
fn an_interrupt_ends_the_one_inside_too() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let mut outer = Command::new(env!("CARGO_BIN_EXE_jepsen-lite"))
        .args(["run", "--environment", "namespaces", "--openclaw"])
        .arg(endless(directory.path()))
        .arg("--out")
        .arg(&out)
        .spawn()
        .unwrap();
    // The path of the configuration file is an argument of the stand-in for the gateway.
    let mark = out.join("node-1").display().to_string();
    until("an instance is started", || runs(&mark));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(outer.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(outer.wait().unwrap().code(), Some(130));
    until("the instances end with it", || !runs(&mark));
}

#[test]
fn the_exit_code_comes_from_inside() {
    if possible() {
        let run = |arguments: &[&str]| {
            let outcome = Command::new(env!("CARGO_BIN_EXE_jepsen-lite")).args(arguments).output().unwrap();
            (outcome.status.code(), String::from_utf8_lossy(&outcome.stderr).into_owned())
        };
        let (code, said) = run(&["run", "--environment", "namespaces", "--openclaw", "/nowhere/openclaw"]);
        assert_eq!(code, Some(2));
        assert!(said.contains("/nowhere/openclaw"), "{said}");
        let (code, said) = run(&["run", "--shape", "loss=0.1", "--openclaw", "/nowhere/openclaw"]);
        assert_eq!(code, Some(2));
        assert!(said.contains("--environment namespaces"), "{said}");
    }
}

#[test]
fn a_leader_that_is_cut_off_is_replaced() {
    if let Some(report) = run(&["--nemesis", "isolate-leader", "--time-limit", "10"]) {
        let faults = report["faults"].as_array().unwrap();
        let wrote = |fault: &serde_json::Value| fault["kind"] == "isolate-leader" && fault["writeAfterMs"].is_f64();
        assert!(faults.iter().any(wrote), "a write while it was cut off: {report}");
    }
}

#[test]
fn links_that_lose_and_repeat_and_reorder_lose_no_write() {
    let shape = "delay=2ms,jitter=1ms,loss=0.01,duplicate=0.02,reorder=0.05";
    if let Some(report) = run(&["--nemesis", "isolate-one,kill-one", "--time-limit", "12", "--shape", shape]) {
        let found = report["checks"].as_array().unwrap().iter().map(|check| check["found"].as_array().unwrap().len());
        assert_eq!(found.sum::<usize>(), 0, "{report}");
        assert!(report["rerun"].as_str().is_some_and(|rerun| rerun.contains(shape)), "{report}");
    }
}

/// `jepsen-lite run` in namespaces, with a built gateway: its report, after it passed.
fn run(arguments: &[&str]) -> Option<serde_json::Value> {
    if !possible() {
        return None;
    }
    // Of another package, so cargo does not say where it is: beside this one, once the workspace was built.
    let openclaw = Path::new(env!("CARGO_BIN_EXE_jepsen-lite")).with_file_name("openclaw");
    if !openclaw.exists() {
        assert!(std::env::var_os("CI").is_none(), "{} is not built", openclaw.display());
        eprintln!("skipped: {} is not built", openclaw.display());
        return None;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_jepsen-lite"))
        .args(["run", "--environment", "namespaces", "--openclaw"])
        .arg(&openclaw)
        .args(arguments)
        .output()
        .unwrap();
    let (said, erred) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{said}\n{erred}", output.status);
    Some(serde_json::from_str(said.lines().last().unwrap()).unwrap())
}

/// A program that stands in for the gateway and runs until it is killed.
fn endless(directory: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join("openclaw");
    std::fs::write(&path, "#!/bin/sh\nwhile true; do sleep 1; done\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Waits for something to be so twice in a row.
fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !(is() && is()) {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether any process that is not a jepsen-lite has this text among its arguments.
fn runs(mark: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { return false };
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(mark) && !line.contains("jepsen-lite\0")
    })
}

/// Runs `work` in the namespace of an instance: on a thread of its own, which stays there.
fn at<T: Send + 'static>(index: usize, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(move || {
        let name = std::fs::File::open(format!("/run/netns/node-{}", index + 1)).unwrap();
        setns(name, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// A socket of an instance, or of the harness.
fn socket(index: Option<usize>) -> UdpSocket {
    let bind = |address: Ipv4Addr| {
        let socket = UdpSocket::bind((address, 7000)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    };
    match index {
        Some(index) => at(index, move || bind(lab::address(index))).join().unwrap(),
        None => bind(lab::CONTROLLER),
    }
}

/// How many of so many datagrams arrive.
fn arrive(from: &UdpSocket, to: &UdpSocket, count: usize) -> usize {
    for _ in 0..count {
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
    std::iter::from_fn(|| to.recv(&mut [0; 8]).ok()).count()
}

#[test]
#[ignore = "runs in namespaces, started by another test"]
fn inside_cuts_and_shapes() {
    assert!(matches!(enter::enter().unwrap(), Entered::Inside));
    let begin = Instant::now();
    let network = Network::Lab(Lab::start(3, &Options { shape: Shape::default(), seed: 7 }).unwrap());
    println!("three namespaces after {:?}", begin.elapsed());
    let [a, b, c, harness] = [socket(Some(0)), socket(Some(1)), socket(Some(2)), socket(None)];
    let all = [&a, &b, &c, &harness];
    for from in all {
        for to in all.into_iter().filter(|to| !std::ptr::eq(*to, from)) {
            assert_eq!(arrive(from, to, 1), 1, "{from:?} to {to:?}");
        }
    }

    network.cut_one_way(0, 1).unwrap();
    assert_eq!([arrive(&a, &b, 1), arrive(&b, &a, 1), arrive(&a, &c, 1), arrive(&harness, &b, 1)], [0, 1, 1, 1]);
    network.isolate(2).unwrap();
    assert_eq!([arrive(&a, &c, 1), arrive(&c, &a, 1), arrive(&b, &c, 1), arrive(&c, &harness, 1)], [0, 0, 0, 1]);
    network.heal().unwrap();
    network.cut_clients(0).unwrap();
    assert_eq!(
        [arrive(&harness, &a, 1), arrive(&a, &harness, 1), arrive(&a, &b, 1), arrive(&b, &harness, 1)],
        [0, 0, 1, 1]
    );
    network.heal().unwrap();
    for other in [&b, &harness] {
        assert_eq!((arrive(&a, other, 1), arrive(other, &a, 1)), (1, 1));
    }

    // Fakes listen on the harness's loopback, and an instance reaches them on its own.
    let fake = TcpListener::bind("127.0.0.1:0").unwrap();
    let (place, wait) = (fake.local_addr().unwrap(), Duration::from_secs(2));
    let dial = move || at(1, move || std::net::TcpStream::connect_timeout(&place, wait).is_ok()).join().unwrap();
    assert!(dial());
    let caller = fake.accept().unwrap().1;
    assert_eq!(caller.ip(), lab::address(1), "the harness sees which instance it is");
    network.cut_clients(1).unwrap();
    assert!(!dial());
    network.heal().unwrap();

    network.shape(0, 1, Shape { loss: 0.5, ..Shape::default() }).unwrap();
    let arrived = arrive(&a, &b, 400);
    assert!((120..280).contains(&arrived), "{arrived} of 400 with half of them lost");
    network.shape(0, 1, Shape { duplicate: 1.0, ..Shape::default() }).unwrap();
    assert_eq!([arrive(&a, &b, 10), arrive(&b, &a, 10)], [20, 10]);
    network.delay(0, 1, Duration::from_millis(50)).unwrap();
    let sent = Instant::now();
    a.send_to(b"x", b.local_addr().unwrap()).unwrap();
    b.recv(&mut [0; 8]).unwrap();
    assert!(sent.elapsed() >= Duration::from_millis(50), "{:?}", sent.elapsed());
    network.heal().unwrap();

    // A megabyte by TCP, whole and in order, over links that do everything to it.
    let rough = "delay=1ms,jitter=1ms,loss=0.01,duplicate=0.05,reorder=0.1".parse().unwrap();
    network.shape(0, 1, rough).unwrap();
    network.shape(1, 0, rough).unwrap();
    let listener = at(1, || TcpListener::bind((lab::address(1), 7001)).unwrap()).join().unwrap();
    let sent: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[n as usize % 4]).collect();
    let expected = sent.clone();
    let sender = at(0, move || {
        let address = SocketAddr::from((lab::address(1), 7001));
        std::net::TcpStream::connect(address).unwrap().write_all(&sent).unwrap();
    });
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == expected);
    let Network::Lab(lab) = &network else { panic!("not a lab") };
    let counts = lab.counts();
    println!("{counts:?}");
    assert!(counts.lost > 100 && counts.duplicated > 0 && counts.reordered > 0, "{counts:?}");
    // The addresses are free again for the next network.
    drop((a, b, c, network));
    drop(Lab::start(2, &Options::default()).unwrap());
}

#[test]
#[ignore = "runs in namespaces, started by another test"]
fn inside_starts_a_program_and_waits() {
    assert!(matches!(enter::enter().unwrap(), Entered::Inside));
    let lab = Lab::start(1, &Options::default()).unwrap();
    let mark = format!("openclaw-lab-{:016x}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos());
    let mut words = lab.through(0).unwrap();
    words.extend(["sh".into(), "-c".into(), "sleep 600; true".into(), mark.clone().into()]);
    let mut child = Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
    println!("mark={mark}");
    child.wait().unwrap();
}
