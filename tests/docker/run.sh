#!/bin/sh
# Builds the images, runs docker-compose.cpu.yml on the Docker engine that `docker` finds, and uses the service as a stranger
# would: through the published port. One line a check. Its own Compose project; everything it made is removed at the end,
# the images apart (they are the cache of the next build).
set -eu
cd "$(dirname "$0")/../.."

fail() { echo "FAILED  $*" >&2; exit 1; }
ok() { echo "ok      $*"; }

command -v docker >/dev/null || fail "there is no 'docker' command; install Docker Engine and Compose, or leave this test out"
docker info >/dev/null 2>&1 || fail "no Docker engine answers ('docker info' fails); start it, see that you may use it, or set DOCKER_HOST"
command -v curl >/dev/null || fail "there is no 'curl' command; install it"
if docker compose version >/dev/null 2>&1; then compose="docker compose"
elif command -v docker-compose >/dev/null; then compose=docker-compose
else fail "there is neither 'docker compose' nor 'docker-compose'; install the Compose plugin"
fi

work=$(mktemp -d)
export COMPOSE_PROJECT_NAME="ddpm-test-$$"
export DDPM_IMAGE=ddpm-test
export DDPM_PUBLISH=127.0.0.1:          # and no port: the engine takes a free one
export DDPM_REDIS_PASSWORD=only-for-this-test
cpu() { $compose -f docker-compose.cpu.yml "$@"; }

finish() {
  status=$?
  trap - EXIT INT TERM
  [ $status -eq 0 ] || { cpu ps; cpu logs --tail=40; } >&2 || true
  cpu down --volumes --remove-orphans --timeout 15 >"$work/down.log" 2>&1 || { cat "$work/down.log" >&2; status=1; }
  left=$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"; docker volume ls -q --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")
  if [ -n "$left" ]; then echo "FAILED  left behind: $left" >&2; status=1; else ok "containers, networks and volumes are removed"; fi
  rm -rf "$work"
  exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# eventually SECONDS WHAT COMMAND...: the command succeeds within the time
eventually() {
  limit=$1 what=$2; shift 2
  began=$(date +%s)
  until "$@" >"$work/last" 2>&1; do
    [ $(($(date +%s) - began)) -lt "$limit" ] || { cat "$work/last" >&2; fail "$what: not within $limit s"; }
    sleep 1
  done
  ok "$what (after $(($(date +%s) - began)) s)"
}
find_url() { url=http://$(cpu port api 8000); }
ready() { find_url && curl -sf --max-time 5 "$url/readyz"; }
workers_ready() { [ "$(curl -sf --max-time 5 "$url/readyz" | grep -o '"name"' | wc -l)" -eq "$1" ]; }
containers() { cpu ps -q "$@"; }
healthy() {
  for id in $(containers); do
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$id")" = healthy ] || { docker inspect -f '{{.Name}} {{json .State.Health}}' "$id"; return 1; }
  done
}

# sample BODY: post a job, wait for its end; its document is then in $work/job, its id in $job
sample() {
  curl -sS -f --max-time 10 -o "$work/job" -H 'Content-Type: application/json' -d "$1" "$url/v1/jobs" || fail "POST /v1/jobs $1 at $url"
  job=$(sed 's/.*"id":"\([^"]*\)".*/\1/' "$work/job")
  began=$(date +%s)
  while :; do
    curl -sS -f --max-time 40 -o "$work/job" "$url/v1/jobs/$job?wait=20" || fail "GET /v1/jobs/$job"
    case $(grep -o '"state":"[a-z]*"' "$work/job" | head -n 1) in
      *finished*) return ;;
      *failed* | *cancelled*) fail "job $job: $(cat "$work/job")" ;;
    esac
    [ $(($(date +%s) - began)) -lt 300 ] || fail "job $job is not finished after 300 s: $(cat "$work/job")"
  done
}
# picture FILE: image 0 of $job, and that it is a PNG
picture() {
  curl -sS -f --max-time 10 -o "$1" "$url/v1/jobs/$job/images/0" || fail "image 0 of job $job"
  [ "$(head -c 8 "$1" | od -An -tx1 | tr -d ' ')" = 89504e470d0a1a0a ] || fail "image 0 of job $job is no PNG"
}

echo "building with $compose; the first time takes minutes"
cpu build >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; fail "the images do not build"; }
size() { docker image inspect -f '{{.Size}}' "$1" | awk '{ printf "%.0f MB", $1 / 1e6 }'; }
ok "builds: $DDPM_IMAGE is $(size "$DDPM_IMAGE"), $DDPM_IMAGE-redis is $(size "$DDPM_IMAGE-redis"), base images included"
holds() { docker run --rm --entrypoint sh "$DDPM_IMAGE" -c "$1" >/dev/null 2>&1; }
if holds "python -c 'import triton'"; then
  holds "command -v gcc" || fail "the image holds Triton and no compiler for it"
  ok "the image holds a compiler, for Triton"
else
  for tool in gcc cc make; do ! holds "command -v $tool" || fail "the image holds $tool"; done
  ok "the image holds no compiler"
fi
docker run --rm --entrypoint python "$DDPM_IMAGE" -c 'import torch; from worker.backends.cpu.kernels import library; assert library()' || fail "the image lacks worker/backends/cpu/libcpu_kernels.so"
ok "the image holds what was compiled"

cpu up -d >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; fail "docker-compose.cpu.yml does not start"; }
eventually 300 "ready through the published port" ready
sample '{"count": 2, "seed": 7, "steps": 10}'
picture "$work/before.png"
ok "a job's picture came through $url: a PNG of $(wc -c <"$work/before.png" | tr -d ' ') bytes"
kept=$job

cpu up -d --scale worker=2 >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; fail "--scale worker=2"; }
eventually 300 "--scale worker=2: two workers are ready" workers_ready 2
sample '{"count": 130, "seed": 7, "steps": 2}'
ok "a job of three shards is finished"
eventually 180 "all four containers are healthy" healthy

[ "$(containers | wc -l)" -eq 4 ] || fail "there are $(containers | wc -l) containers instead of 4"
for id in $(containers); do
  name=$(docker inspect -f '{{.Name}}' "$id")
  [ "$(docker exec "$id" id -u)" != 0 ] || fail "$name runs as root"
  uids=$(docker top "$id" -eo pid,uid | awk 'NR > 1 { print $2 }' | sort -u)
  [ -n "$uids" ] || fail "$name: no processes to be seen"
  ! echo "$uids" | grep -qx 0 || fail "$name has a process of root"
  docker exec "$id" cat /proc/mounts | awk '$2 == "/" { found = $4 ~ /^ro(,|$)/ } END { exit !found }' || fail "$name has a root it can write to"
  confined=$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.RestartPolicy.Name}}' "$id")
  [ "$confined" = "true [ALL] [no-new-privileges:true] unless-stopped" ] || fail "$name: $confined"
  ok "$name: uid $(docker exec "$id" id -u), read-only root, no capabilities, $(docker stats --no-stream --format '{{.MemUsage}}' "$id" | cut -d/ -f1)idle"
done

redis=$(containers redis)
[ -z "$(docker port "$redis")" ] || fail "Redis is published: $(docker port "$redis")"
docker exec "$redis" env -u REDISCLI_AUTH valkey-cli ping 2>&1 | grep -q NOAUTH || fail "Redis answers without its password"
ok "Redis is not published and wants its password"
case $(docker port "$(containers api)") in *0.0.0.0* | *::*) fail "the API is published to the world" ;; esac
ok "the API is published on 127.0.0.1 only"

cpu run --rm -T --no-deps worker models add /opt/ddpm/models/weights/fashion-mnist-28 --name added --no-draw >"$work/add.log" 2>&1 \
  || { cat "$work/add.log" >&2; fail "a model cannot be added to the volume"; }
for id in $(containers worker); do
  docker stop -t 15 "$id" >/dev/null
  [ "$(docker inspect -f '{{.State.ExitCode}}' "$id")" = 0 ] || fail "a worker left SIGTERM with status $(docker inspect -f '{{.State.ExitCode}}' "$id")"
done
docker stop -t 15 "$(containers api)" >/dev/null
status=$(docker inspect -f '{{.State.ExitCode}}' "$(containers api)")
[ "$status" = 0 ] || [ "$status" = 143 ] || fail "the API left SIGTERM with status $status"      # uvicorn ends by the signal it was sent
ok "SIGTERM stops both workers and the API by themselves"
docker kill --signal KILL "$redis" >/dev/null
cpu down --timeout 15 >"$work/down.log" 2>&1 || { cat "$work/down.log" >&2; fail "down"; }
cpu up -d >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; fail "the stack does not start again"; }
eventually 300 "a new stack on the old volumes is ready" ready
job=$kept
picture "$work/after.png"
cmp -s "$work/before.png" "$work/after.png" || fail "the picture of job $job is another one after the restart"
ok "Redis killed, the stack removed and started again: the job is still there, its picture the same bytes"
curl -sS -f "$url/v1/models" | grep -q '"added"' || fail "the model that was added is not listed: $(curl -sS "$url/v1/models")"
ok "a model added to the volume is served"
sample '{"count": 2, "seed": 7, "steps": 10}'
picture "$work/again.png"
ok "and jobs run again"

$compose -f docker-compose.yml config >"$work/gpu" || fail "docker-compose.yml is not valid"
grep -q 'driver: nvidia' "$work/gpu" || fail "docker-compose.yml asks for no GPU"
ok "docker-compose.yml is valid and asks for the GPU"
