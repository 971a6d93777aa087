#!/usr/bin/env bash
# Replaces the instances of a cluster by a new release, one after the other, so that nobody notices. See --help.
set -euo pipefail

usage() {
  cat << 'TEXT'
Usage: rolling-update.sh [OPTIONS] [INSTANCE...]

Updates each instance in turn: the new release is fetched, the instance drains, is replaced, and must be ready and have
caught up before the next one is touched. It asks each instance itself, never the balancer, which answers while any of them
does. It stops at the first thing that is not as it should be, and may be run again: what is current already is left alone,
and an instance that is down comes first.

INSTANCE: names of containers (default: openclaw-1 openclaw-2 openclaw-3), or of machines with --via ssh.

Options:
  --via compose      instances are services of docker compose, and containers of the same names (default)
  --via ssh          instances are machines with the systemd unit openclaw.service, reached by ssh
  --hooks FILE       functions that replace those below "How instances are reached" in this script, for anything else
  --drain SECONDS    longest time for running turns of one instance to end (default 120)
  --ready SECONDS    longest time until an instance that was replaced is ready again (default 120)
  --pause SECONDS    from when an instance is ready again until the next one is touched (default 12; 0: none): Nginx leaves an
                     instance out for 10 s after it refused one connection, and with all of them left out serves nobody
  --all              replace instances that are current, too
  --no-pull          the new release is here already
  --dry-run          look at all instances and say what would be done
  --help             this text

Environment:
  COMPOSE            how to call docker compose (default: "docker compose")
  OPENCLAW_INSTALL   with --via ssh: command that installs the new release on a machine, run there as root
                     (such as "apt-get install -y openclaw"); without it the new binary must be in place already
  OPENCLAW_SSH       how to call ssh (default: "ssh -o BatchMode=yes -o ConnectTimeout=5")
  OPENCLAW_CLI       with --via ssh: how to call the command line there
                     (default: "openclaw"; the unit's environment file is read first)

Exit codes: 0 all instances are current and ready; 1 something is not as it should be, as said; 2 wrong arguments.
TEXT
}

say() { printf '%(%H:%M:%S)T %s\n' -1 "$*"; }
fail() {
  echo "error: $*" >&2
  exit 1
}
wrong() {
  echo "error: $*; see --help" >&2
  exit 2
}

via=compose hooks="" drain=120 ready=120 pause=12 all="" pull=1 dry="" instances=()
number() { [[ "${2:-}" =~ ^[1-9][0-9]{0,4}$ ]] || wrong "$1 needs a number of seconds"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --via)
      [[ "${2:-}" =~ ^(compose|ssh)$ ]] || wrong "--via is compose or ssh"
      via="$2"
      shift
      ;;
    --hooks)
      [ -r "${2:-}" ] || wrong "--hooks needs a file that can be read"
      hooks="$2"
      shift
      ;;
    --drain) number "$@"; drain="$2"; shift ;;
    --ready) number "$@"; ready="$2"; shift ;;
    --pause)
      [ "${2:-}" = 0 ] || number "$@"
      pause="$2"
      shift
      ;;
    --all) all=1 ;;
    --no-pull) pull="" ;;
    --dry-run) dry=1 ;;
    --help | -h) usage; exit 0 ;;
    -*) wrong "unknown option $1" ;;
    *) instances+=("$1") ;;
  esac
  shift
done

# Any one question to an instance takes no longer.
answer=15
# What becomes of a fetch, or of a stop that drains, is for them to say; this only ends what hangs.
work=900

# -- How instances are reached -------------------------------------------------------------------------------------------

if [ "$via" = compose ]; then
  [ "${#instances[@]}" -gt 0 ] || instances=(openclaw-1 openclaw-2 openclaw-3)
  read -ra compose <<< "${COMPOSE:-docker compose}"
  [ -e docker-compose.yml ] || [ -e compose.yaml ] || [ -n "${COMPOSE_FILE:-}" ] || cd "$(dirname "${BASH_SOURCE[0]}")"

  # Runs `openclaw ARGUMENT...` beside the instance; it may take LIMIT seconds.
  beside() { timeout "$2" docker exec "$1" openclaw "${@:3}"; }
  # Brings the new release to where the instance will find it, and changes nothing yet.
  fetch() { timeout "$work" "${compose[@]}" pull "$1"; }
  # The image that the compose file and .env name now, whatever the container was started from. Every version of compose writes
  # the same shape: services, below it their names, below each its keys.
  wanted() {
    timeout "$answer" "${compose[@]}" config | awk -v service="$1:" '
      /^[^ ]/ { services = ($1 == "services:"); next }
      !services { next }
      { match($0, /^ */); depth = RLENGTH; gsub(/["\047]/, "") }
      !names { names = depth }
      depth == names { own = ($1 == service); keys = 0; next }
      own && !keys { keys = depth }
      own && depth == keys && $1 == "image:" { print $2 }
    '
  }
  # Whether the instance runs the release that is there already.
  current() {
    local image running latest
    image="$(wanted "$1")" && [ -n "$image" ] || return 1
    running="$(timeout "$answer" docker inspect --format '{{.Image}}' "$1")" || return 1
    latest="$(timeout "$answer" docker image inspect --format '{{.Id}}' "$image")" || return 1
    [ -n "$latest" ] && [ "$running" = "$latest" ]
  }
  # Stops the instance, gently, and starts it as the new release; waits for the stop and not for the start.
  replace() { timeout "$work" "${compose[@]}" up -d --no-deps ${all:+--force-recreate} "$1"; }
  # Its last words.
  logs() { timeout "$answer" "${compose[@]}" logs --tail 20 "$1"; }
else
  read -ra ssh <<< "${OPENCLAW_SSH:-ssh -o BatchMode=yes -o ConnectTimeout=5}"
  on() { timeout "$2" "${ssh[@]}" -- "$1" "sudo sh -c $(printf '%q' "$3")"; }

  beside() {
    local environment='set -a; [ ! -r /etc/openclaw/openclaw.env ] || . /etc/openclaw/openclaw.env; set +a'
    local directory='export OPENCLAW_DATA_DIR="${OPENCLAW_DATA_DIR:-/var/lib/openclaw}"'
    on "$1" "$2" "$environment; $directory; ${OPENCLAW_CLI:-openclaw} $(printf '%q ' "${@:3}")"
  }
  fetch() { [ -z "${OPENCLAW_INSTALL:-}" ] || on "$1" "$work" "$OPENCLAW_INSTALL"; }
  # The kernel marks the file of a process whose binary was replaced.
  current() { on "$1" "$answer" '[ "$(readlink /proc/$(systemctl show -P MainPID openclaw)/exe)" -ef "$(command -v openclaw)" ]'; }
  replace() { on "$1" "$work" 'systemctl restart openclaw'; }
  logs() { on "$1" "$answer" 'journalctl -u openclaw -n 20 --no-pager'; }
fi
# shellcheck source=/dev/null
[ -z "$hooks" ] || source "$hooks"
[ "${#instances[@]}" -gt 0 ] || wrong "name the machines of the instances"
# A compose file or .env that cannot be read would be found out with an instance drained.
[ "$via" = ssh ] || [ -n "$hooks" ] || timeout "$answer" "${compose[@]}" config > /dev/null || fail "docker compose cannot read its files"

# -- What is true --------------------------------------------------------------------------------------------------------

# What the instance says of itself, as one line of JSON; nothing if it does not answer.
health() { beside "$1" "$answer" --json health --ready 2> /dev/null < /dev/null | tr -d '[:space:]' || true; }
# A field of it.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" <<< "$2"; }
status() { local it; it="$(field status "$(health "$1")")"; echo "${it:-unreachable}"; }

others() {
  local one
  for one in "${instances[@]}"; do [ "$one" = "$1" ] || echo "$one"; done
}

# Waits until every instance but this one is ready: while it is away, all the rest must be there.
await_others() {
  local deadline=$((SECONDS + ready)) one state told=""
  for one in $(others "$1"); do
    until state="$(status "$one")" && [ "$state" = ready ]; do
      [ "$told" = "$one $state" ] || say "$one is $state: waiting until it is ready"
      told="$one $state"
      [ "$SECONDS" -lt "$deadline" ] || fail "$one is $state, so $1 is not replaced: with both away there may be no quorum"
      sleep 1
    done
  done
}

# The highest log index that any of the others has applied.
applied_elsewhere() {
  local one index highest=0
  for one in $(others "$1"); do
    index="$(field appliedIndex "$(health "$one")")"
    if [[ "$index" =~ ^[0-9]+$ ]] && [ "$index" -gt "$highest" ]; then highest="$index"; fi
  done
  echo "$highest"
}

# Whether its process is younger than SECONDS.
younger() {
  local uptime
  uptime="$(field uptimeMs "$(health "$1")")"
  [[ "$uptime" =~ ^[0-9]+$ ]] && [ "$uptime" -le $((($2 + 1) * 1000)) ]
}

# -- One instance --------------------------------------------------------------------------------------------------------

in_hand="" drained="" replaced=""
on_exit() {
  local code=$?
  [ -n "$in_hand" ] || return "$code"
  if [ -n "$drained" ]; then
    echo "$in_hand: not replaced; taking it back into service" >&2
    beside "$in_hand" "$answer" maintenance off > /dev/null < /dev/null \
      || echo "$in_hand is still in maintenance: 'openclaw maintenance off' there ends it" >&2
  fi
  echo "stopped at $in_hand (exit code $code); run this again to go on from there" >&2
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Takes it out of service, and waits for its turns. Where it refuses for now, it is asked again until time is up.
drain() {
  local deadline=$((SECONDS + drain)) code left
  while true; do
    left=$((deadline - SECONDS))
    [ "$left" -gt 0 ] || left=1
    drained=1
    code=0
    beside "$1" $((left + answer)) maintenance on --timeout "$left" < /dev/null || code=$?
    case "$code" in
      0) return ;;
      # No quorum without it, or the others are busy.
      4 | 6)
        [ "$SECONDS" -lt "$deadline" ] || fail "$1 cannot be taken out of service, even after $drain s"
        sleep 1
        ;;
      1) fail "$1 had not drained after $drain s, as it says above; --drain gives it longer" ;;
      *) fail "$1: 'openclaw maintenance on' failed with exit code $code" ;;
    esac
  done
}

update() {
  local instance="$1" began deadline target state=""
  in_hand="$instance"
  if [ -n "$replaced" ] && [ $((replaced + pause)) -gt "$SECONDS" ]; then
    say "waiting until balancers have seen that the one before is back"
    sleep $((replaced + pause - SECONDS))
  fi
  await_others "$instance"
  case "$(status "$instance")" in
    unreachable | no_quorum | starting | consensus_stopped) say "$instance does not serve: replacing it as it is" ;;
    *)
      say "$instance drains"
      drain "$instance"
      # That may have taken minutes.
      await_others "$instance"
      ;;
  esac

  say "$instance is replaced"
  began=$SECONDS
  replace "$instance" || fail "$instance could not be replaced"
  # Started again or not, a process that is older than this was not replaced: nothing was new about it.
  case "$(status "$instance")" in
    maintenance)
      if ! younger "$instance" $((SECONDS - began)); then
        say "$instance was current already: back into service"
        beside "$instance" "$answer" maintenance off > /dev/null < /dev/null || fail "$instance does not leave maintenance"
      fi
      ;;
  esac
  drained=""

  deadline=$((SECONDS + ready))
  target="$(applied_elsewhere "$instance")"
  until state="$(health "$instance")" && [ "$(field status "$state")" = ready ] \
    && [ "$(field appliedIndex "$state")" -ge "$target" ]; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      logs "$instance" >&2 || true
      fail "$instance is $(status "$instance") $ready s after it was replaced; its log is above"
    fi
    sleep 1
  done
  say "$instance is ready: version $(field version "$state"), up to log index $(field appliedIndex "$state")"
  in_hand="" replaced=$SECONDS
}

# -- All of them ---------------------------------------------------------------------------------------------------------

# Who does not serve comes first: that is where an update that was broken off goes on. Two of them are for a person to see to.
declare -A states=()
first=() later=()
for instance in "${instances[@]}"; do
  states[$instance]="$(status "$instance")"
  if [ "${states[$instance]}" = ready ]; then later+=("$instance"); else first+=("$instance"); fi
  say "$instance is ${states[$instance]}"
done
[ "${#first[@]}" -le 1 ] || fail "more than one instance is not ready: ${first[*]}; see to them before an update"

for instance in ${first[@]+"${first[@]}"} ${later[@]+"${later[@]}"}; do
  if [ -n "$pull" ] && [ -z "$dry" ]; then
    fetch "$instance" || fail "the new release could not be fetched for $instance; with --no-pull it is taken to be here"
  fi
  if [ -z "$all" ] && [ "${states[$instance]}" = ready ] && current "$instance" > /dev/null 2>&1; then
    say "$instance is current"
  elif [ -n "$dry" ]; then
    say "$instance would be replaced"
  else
    update "$instance"
  fi
done
[ -n "$dry" ] || say "all instances are current and ready"
