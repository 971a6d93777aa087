//! The image, docker compose's file and the manifests of Kubernetes: read as their programs read them, and what must agree in
//! them and with the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_config::{Loaded, cluster::Member};
use serde_json::Value;

use crate::{
    LOOK, OPENCLAW, SOON, Server, get, longest_stop, path, published, run, settings, text, wait_listening, yaml,
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const DATA: &str = "/data/openclaw";
/// Files and connections that an instance may have open besides its clients'; so many does `openclaw doctor` want too.
const BESIDE_CONNECTIONS: u64 = 1024;

/// `90s` or `2m`.
fn duration(value: &Value) -> Result<Duration> {
    let value = text(value)?;
    let (number, unit) = value.split_at(value.len().saturating_sub(1));
    let number: u64 = number.parse().with_context(|| format!("{value} is not a duration"))?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(60 * number)),
        _ => anyhow::bail!("{value} is not in seconds or minutes"),
    }
}

/// Compose's `${NAME:?why}` and `${NAME:-value}`, with every secret filled in.
fn substituted(value: &str) -> Result<String> {
    let Some(inner) = value.strip_prefix("${").and_then(|value| value.strip_suffix('}')) else {
        ensure!(!value.contains("${"), "{value}");
        return Ok(value.to_owned());
    };
    match (inner.split_once(":-"), inner.split_once(":?")) {
        (Some((_, default)), _) => Ok(default.to_owned()),
        (None, Some((_, why))) => {
            ensure!(why.contains(".env"), "{value} does not say where to put it");
            Ok(SECRET.to_owned())
        }
        (None, None) => anyhow::bail!("{value} fails without a word when it is missing"),
    }
}

/// Settings of the published file, as an instance with this environment has them.
fn loaded(file: &str, mut environment: BTreeMap<String, String>) -> Result<Loaded> {
    let at = environment.remove("OPENCLAW_CONFIG_PATH").context("no OPENCLAW_CONFIG_PATH")?;
    ensure!(at.ends_with("/openclaw.json5"), "{at}");
    let loaded = settings(Some(path(file)), &environment)?;
    ensure!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = &loaded.config;
    ensure!(config.gateway.port == 3000 && !config.gateway.bind.is_loopback(), "other containers reach it");
    ensure!(config.gateway.auth.token.is_some() && config.cluster.peer.secret.is_some());
    ensure!(config.cluster.peer.listen == "0.0.0.0:3100".parse()?);
    ensure!(config.storage.data_dir.to_str() == Some(DATA));
    Ok(loaded)
}

fn compose() -> Result<Value> {
    yaml(&published("docker-compose.yml")?)?.into_iter().next().context("an empty file")
}

#[test]
fn every_instance_of_the_compose_file_is_a_member_of_the_same_cluster() -> Result<()> {
    let compose = compose()?;
    let mut lists = BTreeSet::new();
    for n in 1..=3 {
        let (name, id) = (format!("openclaw-{n}"), format!("node-{n}"));
        let service = &compose["services"][&name];
        ensure!(substituted(text(&service["image"])?)? == "openclaw/gateway:latest");
        ensure!(service["ports"] == serde_json::json!([format!("300{n}:3000")]));
        ensure!(service["container_name"] == name, "`docker exec {name}` does not find it");
        let volumes = service["volumes"].as_array().context("volumes")?;
        ensure!(volumes.contains(&format!("shared-data:{DATA}").into()));
        let mut environment = BTreeMap::new();
        for (name, value) in service["environment"].as_object().context("an environment")? {
            environment.insert(name.clone(), substituted(text(value)?)?);
        }
        ensure!(environment.get("OPENCLAW_INSTANCE_ID") == Some(&id));
        let config = loaded("openclaw.json5", environment)?.config;
        ensure!(duration(&service["stop_grace_period"])? >= longest_stop(&config), "it is killed while it drains");
        let own = config.cluster.peer_address().context("its own address")?.to_string();
        ensure!(own == format!("{name}:3100"), "{own}");
        let files = service["ulimits"]["nofile"].as_u64().context("a limit of open files")?;
        let wanted = u64::from(config.gateway.limits.max_connections) + BESIDE_CONNECTIONS;
        ensure!(files >= wanted, "{files} open files do not do for {wanted}");
        lists.insert(config.cluster.bootstrap.iter().map(Member::to_string).collect::<Vec<_>>());
    }
    ensure!(lists.len() == 1 && lists.iter().all(|list| list.len() == 3), "{lists:?}");
    ensure!(compose["volumes"]["shared-data"]["driver"] == "local");
    Ok(())
}

#[test]
fn a_container_that_is_replaced_is_found_again_by_nginx() -> Result<()> {
    let compose = compose()?;
    let subnet = text(&compose["networks"]["default"]["ipam"]["config"][0]["subnet"])?;
    let network = subnet.strip_suffix("0/24").context("the subnet")?;
    let nginx = &compose["services"]["nginx"];
    ensure!(nginx["ports"] == serde_json::json!(["3000:80"]) && nginx["image"] == "nginx:alpine");
    let hosts: BTreeSet<&str> =
        nginx["extra_hosts"].as_array().context("extra_hosts")?.iter().map(text).collect::<Result<_>>()?;
    let mut seen = BTreeSet::new();
    for (name, service) in compose["services"].as_object().context("services")? {
        let address = text(&service["networks"]["default"]["ipv4_address"])?;
        ensure!(address.starts_with(network) && seen.insert(address), "{name}: {address}");
        ensure!(name == "nginx" || hosts.contains(format!("{name}:{address}").as_str()), "{name}: {hosts:?}");
    }
    let check = text(&nginx["healthcheck"]["test"][5])?;
    ensure!(check.ends_with("/api/v1/health/ready"), "{check} says more than whether anybody serves");
    // What is mounted is there, and speaks of the same names.
    for (service, name) in [("nginx", "nginx/openclaw.conf"), ("openclaw-1", "openclaw.json5")] {
        let volumes = compose["services"][service]["volumes"].as_array().context("volumes")?;
        ensure!(
            volumes
                .iter()
                .any(|volume| volume.as_str().is_some_and(|volume| volume.starts_with(&format!("./{name}:"))))
        );
        ensure!(path(name).is_file(), "{name}");
    }
    let file = published("nginx/openclaw.conf")?;
    ensure!((1..=3).all(|n| file.contains(&format!("server openclaw-{n}:3000"))));
    Ok(())
}

#[test]
fn the_example_of_secrets_names_what_the_compose_file_wants() -> Result<()> {
    let (compose, example) = (published("docker-compose.yml")?, published(".env.example")?);
    let mut wanted = 0;
    for rest in compose.split("${").skip(1) {
        let name = rest.split(':').next().unwrap_or_default();
        ensure!(example.contains(&format!("{name}=")), "{name} is not in .env.example");
        wanted += 1;
    }
    ensure!(wanted >= 3, "{wanted}");
    let ignored = std::fs::read_to_string(path("../.gitignore"))?;
    for secret in ["/deploy/.env", "/deploy/k8s/secret.env"] {
        ensure!(ignored.lines().any(|line| line == secret), "{secret} could be committed");
    }
    Ok(())
}

#[test]
fn the_image_runs_as_nobody_in_particular_and_its_check_is_a_command_that_exists() -> Result<()> {
    let file = published("Dockerfile")?;
    let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with('#')).collect();
    let froms: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("FROM ")).collect();
    let [builder, runtime] = froms.as_slice() else { anyhow::bail!("not two stages: {froms:?}") };
    ensure!(runtime.ends_with(":${DEBIAN}-slim"), "another libc than the builder's: {runtime}");
    let manifest = std::fs::read_to_string(path("../Cargo.toml"))?;
    let release = builder.strip_prefix("rust:").and_then(|image| image.split('-').next()).context("the builder")?;
    ensure!(
        manifest.contains(&format!("rust-version = \"{release}\"")),
        "{builder} is not the workspace's rust-version"
    );

    let value = |key: &str| lines.iter().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"));
    let user = value("USER ")?;
    ensure!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user} is not a number above 0");
    // Whoever copies makes root the owner, whatever the files were before.
    ensure!(
        lines.contains(&format!("COPY --from=builder --chown={user} {DATA} {DATA}").as_str()),
        "a volume of root's"
    );
    ensure!(value("VOLUME ")? == DATA && value("EXPOSE ")?.contains("3000"));
    ensure!(file.contains(&format!("OPENCLAW_DATA_DIR={DATA}")));

    let check = value("HEALTHCHECK ")?.split("CMD ").nth(1).context("a command")?;
    let check: Vec<String> = serde_json::from_str(check)?;
    run(Command::new(OPENCLAW).args(&check[1..]).arg("--help"))?;
    ensure!(check[..2] == ["openclaw", "health"]);
    Ok(())
}

/// An instance as the guide's compose file starts it from our image, with another directory in place of the volume.
fn guides_instance(service: &str, volume: &Path) -> Result<Command> {
    let guide = yaml(include_str!("guide/docker-compose.yml"))?.into_iter().next().context("an empty file")?;
    ensure!(published("Dockerfile")?.contains("OPENCLAW_GATEWAY_BIND=lan"));
    let mut command = Command::new(OPENCLAW);
    command.env_clear().env("HOME", volume).env("OPENCLAW_GATEWAY_BIND", "lan").arg("gateway");
    for variable in guide["services"][service]["environment"].as_array().context("an environment")? {
        let (name, value) = text(variable)?.split_once('=').context("NAME=value")?;
        command.env(name, if value == DATA { volume.to_str().context("a path")? } else { value });
    }
    Ok(command)
}

fn refused(command: &mut Command, why: &str) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(78) && said.contains(why), "{}: {said}", output.status);
    Ok(())
}

/// The guide's own file names neither peers nor a token. Each instance of it would be a cluster of its own that anybody may
/// call: better that it says what is missing.
#[test]
fn with_the_guides_environment_alone_an_instance_says_what_is_missing() -> Result<()> {
    let volume = tempfile::tempdir()?;
    for service in ["openclaw-1", "openclaw-2", "openclaw-3"] {
        refused(&mut guides_instance(service, volume.path())?, "OPENCLAW_GATEWAY_TOKEN")?;
    }
    Ok(())
}

/// And with a token, as the first message asks for: three clusters behind one balancer would each know a third of what was said.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_guides_environment_and_a_token_no_second_cluster_begins_in_the_volume() -> Result<()> {
    let volume = tempfile::tempdir()?;
    let ports = jepsen_lite::ports::Ports::reserve(4)?;
    let instance = |service: &str, at: usize| -> Result<Command> {
        let mut command = guides_instance(service, volume.path())?;
        // Three containers have three addresses; here it is one machine.
        command.env("OPENCLAW_GATEWAY_TOKEN", SECRET).env("OPENCLAW_GATEWAY_BIND", "loopback");
        command.env("OPENCLAW_GATEWAY_PORT", ports[at].to_string());
        command.env("OPENCLAW_PEER_LISTEN", format!("127.0.0.1:{}", ports[at + 2]));
        Ok(command)
    };
    let _first = Server::start(&mut instance("openclaw-1", 0)?)?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], ports[0]));
    wait_listening(address)?;
    refused(&mut instance("openclaw-2", 1)?, "OPENCLAW_CLUSTER_BOOTSTRAP")?;
    // The listener was there before the data was.
    let deadline = Instant::now() + SOON;
    while get(address, "/api/v1/health")?.0 != 200 {
        ensure!(Instant::now() < deadline, "the first is never ready");
        tokio::time::sleep(LOOK).await;
    }
    refused(&mut instance("openclaw-2", 1)?, "node-1 is another instance's")
}

/// The manifests, by kind and name.
fn manifests() -> Result<BTreeMap<(String, String), Value>> {
    let kustomization = yaml(&published("k8s/kustomization.yaml")?)?.into_iter().next().context("an empty file")?;
    let mut found = BTreeMap::new();
    for file in kustomization["resources"].as_array().context("resources")? {
        for manifest in yaml(&published(&format!("k8s/{}", text(file)?))?)? {
            let key = (text(&manifest["kind"])?.to_owned(), text(&manifest["metadata"]["name"])?.to_owned());
            ensure!(found.insert(key, manifest).is_none());
        }
    }
    for generated in [&kustomization["configMapGenerator"][0]["files"], &kustomization["secretGenerator"][0]["envs"]] {
        let file = format!("k8s/{}", text(&generated[0])?);
        ensure!(path(&file).is_file() || path(&format!("{file}.example")).is_file(), "{file}");
    }
    Ok(found)
}

fn manifest<'a>(all: &'a BTreeMap<(String, String), Value>, kind: &str, name: &str) -> Result<&'a Value> {
    all.get(&(kind.to_owned(), name.to_owned())).with_context(|| format!("no {kind} {name}"))
}

fn seconds(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is not a number of seconds"))
}

#[test]
fn pods_find_each_other_before_they_are_ready() -> Result<()> {
    let all = manifests()?;
    let set = &manifest(&all, "StatefulSet", "openclaw")?["spec"];
    let peers = text(&set["serviceName"])?;
    let headless = &manifest(&all, "Service", peers)?["spec"];
    ensure!(headless["clusterIP"] == "None" && headless["publishNotReadyAddresses"] == true);
    ensure!(set["podManagementPolicy"] == "Parallel", "the first pod is never ready alone");

    let container = &set["template"]["spec"]["containers"][0];
    let mut environment: BTreeMap<String, String> =
        BTreeMap::from(["OPENCLAW_GATEWAY_TOKEN", "OPENCLAW_CLUSTER_SECRET"].map(|name| (name.into(), SECRET.into())));
    for variable in container["env"].as_array().context("env")? {
        if let Some(value) = variable["value"].as_str() {
            environment.insert(text(&variable["name"])?.to_owned(), value.to_owned());
        } else {
            ensure!(variable["name"] == "OPENCLAW_INSTANCE_ID");
            ensure!(variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name");
        }
    }
    let replicas = set["replicas"].as_u64().context("replicas")?;
    ensure!(replicas == 3);
    for n in 0..replicas {
        let pod = format!("openclaw-{n}");
        environment.insert("OPENCLAW_INSTANCE_ID".to_owned(), pod.clone());
        let config = loaded("k8s/openclaw.json5", environment.clone())?.config;
        ensure!(config.cluster.bootstrap.len() == 3);
        let own = config.cluster.peer_address().context("its own address")?.to_string();
        ensure!(own == format!("{pod}.{peers}:{}", headless["ports"][0]["port"]), "{own}");
    }
    let example = published("k8s/secret.env.example")?;
    ensure!(["OPENCLAW_GATEWAY_TOKEN=", "OPENCLAW_CLUSTER_SECRET="].iter().all(|name| example.contains(name)));
    Ok(())
}

#[test]
fn a_pod_has_time_to_drain_and_its_probes_ask_what_the_gateway_answers() -> Result<()> {
    let all = manifests()?;
    let set = &manifest(&all, "StatefulSet", "openclaw")?["spec"];
    let pod = &set["template"]["spec"];
    let container = &pod["containers"][0];
    let hook: Vec<&str> = container["lifecycle"]["preStop"]["exec"]["command"]
        .as_array()
        .context("a preStop command")?
        .iter()
        .map(text)
        .collect::<Result<_>>()?;
    ensure!(hook[..3] == ["openclaw", "maintenance", "on"]);
    run(Command::new(OPENCLAW).args(&hook[1..]).arg("--help"))?;
    let timeout = hook.iter().skip_while(|word| **word != "--timeout").nth(1).context("a time limit")?;
    let environment = BTreeMap::from([("OPENCLAW_DATA_DIR".to_owned(), DATA.to_owned())]);
    let config = settings(Some(path("k8s/openclaw.json5")), &environment)?.config;
    let longest = Duration::from_secs(timeout.parse()?) + longest_stop(&config);
    let grace = Duration::from_secs(seconds(&pod["terminationGracePeriodSeconds"])?);
    ensure!(grace >= longest, "killed after {grace:?}, while draining and stopping may take {longest:?}");

    let probes = [
        ("startupProbe", "/api/v1/health/live"),
        ("livenessProbe", "/api/v1/health/live"),
        ("readinessProbe", "/api/v1/health/ready"),
    ];
    let ports: BTreeMap<&str, u64> = container["ports"]
        .as_array()
        .context("ports")?
        .iter()
        .map(|port| Ok((text(&port["name"])?, seconds(&port["containerPort"])?)))
        .collect::<Result<_>>()?;
    ensure!(ports == BTreeMap::from([("http", 3000), ("peers", 3100)]), "{ports:?}");
    for (probe, path) in probes {
        let get = &container[probe]["httpGet"];
        ensure!(get["path"] == path && get["port"] == "http", "{probe}: {get}");
    }
    for (service, port) in [("openclaw", "http"), ("openclaw-peers", "peers")] {
        let spec = &manifest(&all, "Service", service)?["spec"];
        ensure!(spec["ports"][0]["targetPort"] == port && spec["ports"][0]["port"] == ports[port]);
        ensure!(spec["selector"] == set["selector"]["matchLabels"]);
    }
    Ok(())
}

#[test]
fn one_pod_is_away_at_a_time_and_none_may_do_more_than_it_must() -> Result<()> {
    let all = manifests()?;
    let set = &manifest(&all, "StatefulSet", "openclaw")?["spec"];
    let (labels, pod) = (&set["template"]["metadata"]["labels"], &set["template"]["spec"]);
    let budget = &manifest(&all, "PodDisruptionBudget", "openclaw")?["spec"];
    ensure!(budget["maxUnavailable"] == 1 && budget["selector"]["matchLabels"] == set["selector"]["matchLabels"]);
    ensure!(set["selector"]["matchLabels"] == *labels);
    let apart = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    ensure!(apart["topologyKey"] == "kubernetes.io/hostname" && apart["labelSelector"]["matchLabels"] == *labels);

    // What the namespace's "restricted" demands, and no more places to write to than the data.
    let (whole, own) = (&pod["securityContext"], &pod["containers"][0]["securityContext"]);
    ensure!(whole["runAsNonRoot"] == true && whole["seccompProfile"]["type"] == "RuntimeDefault");
    ensure!(own["allowPrivilegeEscalation"] == false && own["capabilities"]["drop"] == serde_json::json!(["ALL"]));
    ensure!(own["readOnlyRootFilesystem"] == true && pod["automountServiceAccountToken"] == false);
    let user = whole["runAsUser"].as_u64().context("a user")?;
    ensure!(published("Dockerfile")?.contains(&format!("USER {user}:{user}")), "another user than the image's");
    Ok(())
}
