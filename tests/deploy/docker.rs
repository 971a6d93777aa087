//! A stand-in for Docker: the commands that update scripts use, done to local processes.
//!
//! A shell script named `docker` asks this program over loopback, and this program does to the instances of a [`Cluster`] what
//! Docker does to containers: `up -d` leaves alone what is current, else sends SIGTERM, waits for the end as long as the grace
//! period, kills, and starts anew. `docker exec` runs the built binary with the instance's settings.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jepsen_lite::cluster::Cluster;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::OPENCLAW;

const LATEST: &str = "openclaw/gateway:latest";

/// What becomes of instances while scripts are at work.
pub(crate) struct Docker {
    cluster: Cluster,
    grace: Duration,
    /// What each tag means, the one that the compose file names now, and each instance's own image.
    tags: BTreeMap<String, u32>,
    wanted: String,
    images: Vec<u32>,
    /// The instance whose next replacement fails.
    pub(crate) fails: Option<usize>,
    pub(crate) replaced: Vec<usize>,
    /// Those that did not end within the grace period.
    pub(crate) killed: Vec<usize>,
    pub(crate) longest_stop: Duration,
}

/// The stand-in at work; it gives the instances back when it is stopped.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Docker>>,
    /// Where `docker` is.
    pub(crate) programs: PathBuf,
}

impl Docker {
    pub(crate) fn new(cluster: Cluster, grace: Duration) -> Self {
        let images = vec![1; cluster.len()];
        Self {
            cluster,
            grace,
            tags: BTreeMap::from([(LATEST.to_owned(), 1)]),
            wanted: LATEST.to_owned(),
            images,
            fails: None,
            replaced: Vec::new(),
            killed: Vec::new(),
            longest_stop: Duration::ZERO,
        }
    }

    /// There is something new to pull.
    pub(crate) fn publish(&mut self) {
        let newest = self.tags.values().max().copied().unwrap_or_default() + 1;
        self.tags.insert(self.wanted.clone(), newest);
    }

    /// The compose file, or its `.env`, names another tag, which is published; the one before means what it did.
    pub(crate) fn publish_as(&mut self, tag: &str) {
        self.wanted = tag.to_owned();
        self.publish();
    }

    /// The image that a container is started from now.
    fn latest(&self) -> Result<u32> {
        self.tags.get(&self.wanted).copied().with_context(|| format!("no such image: {}", self.wanted))
    }

    pub(crate) fn pids(&self) -> Vec<Option<u32>> {
        self.cluster.instances().iter().map(|instance| instance.process.pid()).collect()
    }

    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Writes the script `docker` into `programs`, and answers it until stopped.
    pub(crate) async fn start(mut self, programs: &Path) -> Result<Running> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let mut settings = String::new();
        for (n, instance) in (1..).zip(self.cluster.instances()) {
            let program = instance.process.program();
            let file = program.arguments.get(2).context("a settings file")?;
            settings.push_str(&format!("settings[openclaw-{n}]='{}'\n", Path::new(file).display()));
        }
        write_program(&programs.join("docker"), &script(port, &settings))?;
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = tokio::select! {
                    // Either way it is over.
                    _ = &mut stopped => return Ok(self),
                    accepted = listener.accept() => accepted?,
                };
                self.answer(stream).await?;
            }
        });
        Ok(Running { stop, task, programs: programs.to_owned() })
    }

    /// One question and its answer: the exit code, and what to print.
    async fn answer(&mut self, mut stream: TcpStream) -> Result<()> {
        let mut question = String::new();
        BufReader::new(&mut stream).read_line(&mut question).await?;
        let (code, text) = match self.obey(question.trim()).await {
            Ok(text) => (0, text),
            Err(error) => (1, format!("{error:#}").replace('\n', " ")),
        };
        stream.write_all(format!("{code}\n{text}\n").as_bytes()).await?;
        Ok(())
    }

    async fn obey(&mut self, question: &str) -> Result<String> {
        let (verb, name) = question.split_once(' ').context("a verb and a name")?;
        match verb {
            "tag" => {
                let image = self.tags.get(name).with_context(|| format!("no such image: {name}"))?;
                return Ok(format!("sha256:{image}"));
            }
            "config" => return Ok(self.wanted.clone()),
            _ => {}
        }
        let number: usize = name.strip_prefix("openclaw-").and_then(|n| n.parse().ok()).context("no such service")?;
        let index = number - 1;
        ensure!(index < self.cluster.len(), "no such service: {name}");
        match verb {
            "exec" => {
                let running = self.cluster.instance(index).process.is_running()?;
                ensure!(running, "Container {name} is not running");
                Ok(String::new())
            }
            "pull" => Ok(String::new()),
            "image" => Ok(format!("sha256:{}", self.images[index])),
            "logs" => Ok("(its log)".to_owned()),
            "recreate" => self.replace(index).await,
            "up" => {
                let running = self.cluster.instance(index).process.is_running()?;
                if running && self.images[index] == self.latest()? {
                    return Ok(format!("Container {name}  Running"));
                }
                self.replace(index).await
            }
            _ => bail!("unknown verb {verb}"),
        }
    }

    async fn replace(&mut self, index: usize) -> Result<String> {
        if self.fails == Some(index) {
            self.fails = None;
            bail!("no space left on device");
        }
        let process = &mut self.cluster.instance(index).process;
        if process.is_running()? {
            let began = Instant::now();
            process.terminate()?;
            if process.wait_exit(self.grace).await.is_err() {
                process.kill()?;
                self.killed.push(index);
            }
            self.longest_stop = self.longest_stop.max(began.elapsed());
        }
        self.cluster.start_one(index)?;
        self.images[index] = self.latest()?;
        self.replaced.push(index);
        Ok(format!("Container openclaw-{}  Started", index + 1))
    }
}

impl Running {
    pub(crate) async fn stop(self) -> Result<Docker> {
        // The task may have failed already; then it says why.
        if self.stop.send(()).is_err() {
            eprintln!("the stand-in for Docker has ended by itself");
        }
        self.task.await.context("the stand-in for Docker")?
    }
}

/// Writes a script that can be run.
pub(crate) fn write_program(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn script(port: u16, settings: &str) -> String {
    format!(
        r#"#!/bin/bash
declare -A settings
{settings}
ask() {{
  exec 3<> /dev/tcp/127.0.0.1/{port}
  echo "$*" >&3
  IFS= read -r code <&3
  IFS= read -r text <&3
  if [ "$code" = 0 ]; then [ -z "$text" ] || echo "$text"; else echo "Error: $text" >&2; fi
  return "$code"
}}
case "$*" in
  "exec openclaw-"?" openclaw "*)
    ask exec "$2" || exit 1
    exec env -i PATH="$PATH" HOME="$HOME" OPENCLAW_CONFIG_PATH="${{settings[$2]}}" {OPENCLAW} "${{@:4}}"
    ;;
  "compose pull openclaw-"?) ask pull "$3" ;;
  "compose up -d openclaw-"? | "compose up -d --no-deps openclaw-"?) ask up "${{@: -1}}" ;;
  "compose up -d --no-deps --force-recreate openclaw-"?) ask recreate "${{@: -1}}" ;;
  "compose logs --tail "*" openclaw-"?) ask logs "${{@: -1}}" ;;
  "compose config")
    image="$(ask config -)" || exit 1
    # As compose writes it. Nginx's image, a variable and a label are not the wanted one.
    echo "name: deploy"
    echo "services:"
    echo "  nginx:"
    echo "    image: nginx:alpine"
    for n in 1 2 3; do
      printf '  openclaw-%s:\n    environment:\n      image: none\n    image: %s\n' "$n" "$image"
      printf '    labels:\n      image: none\n    restart: unless-stopped\n'
    done
    printf 'volumes:\n  openclaw-1:\n    image: none\n'
    ;;
  "inspect --format {{{{.Image}}}} openclaw-"?) ask image "${{@: -1}}" ;;
  "image inspect --format {{{{.Id}}}} "*) ask tag "${{@: -1}}" ;;
  *) echo "docker: this stand-in does not know: $*" >&2; exit 125 ;;
esac
"#
    )
}
