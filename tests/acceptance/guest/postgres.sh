#!/bin/bash
# Runs in the guest, as root. `postgres.sh write`: a cluster on the share, pgbench's load, and beside it CLIENTS sessions that each
# commit one row after the other; each row is told once the server has said that it is committed. Ends when the machine is killed.
# `postgres.sh check ACKNOWLEDGED`: the cluster recovers, and has what it said.
set -u
clients=3
data=/mnt/virtiofs1/postgres
version=$(ls /usr/lib/postgresql)
PATH=/usr/lib/postgresql/$version/bin:$PATH
as_postgres() { setpriv --reuid postgres --regid postgres --clear-groups env HOME=/tmp "$@"; }
sql() { as_postgres psql -h /tmp -d postgres -v ON_ERROR_STOP=1 -qAt "$@"; }
start() {
  as_postgres pg_ctl -D $data -l /tmp/postgres.log -w -t 300 -o '-k /tmp -c listen_addresses=' start >/dev/null || {
    cat /tmp/postgres.log
    exit 1
  }
}
fail() {
  echo "FAILED: $*"
  exit 1
}

write() {
  mkdir $data && chown postgres: $data && chmod 700 $data
  as_postgres initdb -D $data -k --locale=C -E UTF8 >/dev/null || fail initdb
  # Checkpoints while it is killed, too.
  printf 'checkpoint_timeout=30s\nmax_wal_size=64MB\nfull_page_writes=on\n' >>$data/postgresql.conf
  start
  as_postgres pgbench -h /tmp -i -q -s 3 postgres 2>/dev/null || fail "pgbench -i"
  sql -c 'create table acknowledged(client int, number int, primary key(client, number))'
  echo ready
  as_postgres pgbench -h /tmp -c 2 -j 2 -T 100000 postgres >/tmp/pgbench 2>&1 &
  for client in $(seq $clients); do
    # Autocommit: psql prints a row when the server has said that the command, and so its transaction, is complete.
    seq 1 1000000 | sed "s/.*/insert into acknowledged values($client, &) returning 'committed $client ' || number;/" | sql &
  done
  wait
  fail "it ended before it was killed: $(cat /tmp/pgbench)"
}

check() {
  local client expected most count
  start
  grep -E 'redo (starts|done)|not properly shut down' /tmp/postgres.log || fail "it did not have to recover"
  client=0
  for expected in "$@"; do
    client=$((client + 1))
    count=$(sql -c "select count(*) from acknowledged where client = $client")
    most=$(sql -c "select coalesce(max(number), 0) from acknowledged where client = $client")
    [ "$count" = "$most" ] || fail "client $client has $count rows and a last one of $most"
    [ "$count" -ge "$expected" ] || fail "client $client has $count rows, and $expected were acknowledged"
    echo "client $client: $count rows, $expected acknowledged"
  done
  # Each of pgbench's transactions changes all four by the same amount.
  echo "pgbench: $(sql -c 'select count(*) from pgbench_history') transactions"
  [ "$(sql -c 'select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
      and (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
      and (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history)')" = t ] ||
    fail "pgbench's balances differ"
  sql -c 'create extension amcheck'
  as_postgres pg_amcheck -h /tmp --heapallindexed -d postgres || fail pg_amcheck
  as_postgres pg_ctl -D $data -w -m fast stop >/dev/null || fail "pg_ctl stop"
  as_postgres pg_checksums --check -D $data || fail pg_checksums
}

"$@"
