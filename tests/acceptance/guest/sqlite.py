"""Runs in the guest. `sqlite.py write DIR JOURNAL`: commits one row after the other and says so, until the machine is killed.
`sqlite.py check DIR JOURNAL ACKNOWLEDGED`: the database is sound and has that many rows at least, each as it was written."""

import hashlib
import sqlite3
import sys


def payload(number):
    return hashlib.sha512(str(number).encode()).hexdigest() * (number % 50)


def main(what, folder, journal, acknowledged="0"):
    database = sqlite3.connect(f"{folder}/{journal}.db", isolation_level=None)
    mode = database.execute(f"PRAGMA journal_mode={journal}").fetchone()
    if mode != (journal,):
        sys.exit(f"journal_mode is {mode}")
    database.execute("PRAGMA synchronous=FULL")
    if what == "write":
        database.execute("CREATE TABLE rows(number INTEGER PRIMARY KEY, payload TEXT)")
        database.execute("CREATE INDEX by_payload ON rows(payload)")
        for number in range(1, 1000000):
            database.execute("BEGIN")
            database.execute("INSERT INTO rows VALUES(?, ?)", (number, payload(number)))
            database.execute("COMMIT")
            print("committed", number, flush=True)
    integrity = database.execute("PRAGMA integrity_check").fetchall()
    if integrity != [("ok",)]:
        sys.exit(f"integrity_check: {integrity[:20]}")
    rows = database.execute("SELECT number, payload FROM rows ORDER BY number").fetchall()
    if [number for number, _ in rows] != list(range(1, len(rows) + 1)):
        sys.exit("rows are missing between others")
    wrong = [number for number, text in rows if text != payload(number)]
    if wrong:
        sys.exit(f"rows are not as written: {wrong[:20]}")
    if len(rows) < int(acknowledged):
        sys.exit(f"{len(rows)} rows, and {acknowledged} were acknowledged")
    print(f"integrity_check ok, {len(rows)} rows, {acknowledged} acknowledged")


main(*sys.argv[1:])
