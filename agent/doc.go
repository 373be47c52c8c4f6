// Agent is the small service that sojourn.deploy puts on a target for the length of a deployment: it runs programs, moves
// files, reads package databases and opens ports for its one client, the controller's broker, and then removes itself.
//
// Usage:
//
//	agent serve      be the service; on Windows the service control manager starts it so
//	agent guard      be the agent's guard, which the agent itself starts
//	agent launch     on Linux: read the config on standard input, start the service, print ready (or the error) and end
//	agent version    print the version of the collection that it was built from
//
// # Life
//
// The way in makes a folder, puts the executable there and starts it. The agent makes a key pair in memory, takes the first
// free port of the config's range, admits the controller's addresses to that port in whatever filters the target's input,
// and answers with its certificate (ready). Tunnelled, it waits on the loopback, or on Windows behind a named pipe, to which
// the way in leads, and leaves the firewall alone. From then on it speaks SOAP 1.1 over TLS 1.3 with the one client whose
// certificate's SHA-256 the config holds; everybody else gets a failed handshake.
//
// It lives as long as its lease is renewed. At the lease's end, after a Shutdown, and when the service manager stops it, it
// lets running programs finish (except those that were said to be safe to kill; the service manager's patience has a limit),
// closes its firewall rules, deletes its service and its folder, and ends. Nothing of it is left. An end that nobody asked for
// is written into the target's own log: syslog, or the Application event log. Where the firewall's tool fails again and again,
// the folder stays with left.json, which says so.
//
// While it lives it keeps lease.json up to date in its folder, by which agents of other runs tell it from a dead one; it opens
// its rules again where a reload of the firewall dropped them; and it has a guard, a second process of the same executable,
// that takes back what it leaves if it is killed.
//
//   - Windows: an own-process service of LocalSystem in %SystemRoot%\sojourn-<run>, with config.json and ready.json. It starts
//     again after a reboot, with a new key pair, and then writes ready.json anew. A running executable cannot be deleted
//     there: a cmd.exe that waits for the agent's end does it.
//   - Linux: a transient systemd unit sojourn-<run>, or a plain daemon where systemd does not run. The executable unlinks
//     itself once running; only the folder, mode 0700, is on the disk. A reboot ends it for good, and with systemd, by a file
//     in /etc/tmpfiles.d, the folder as well.
//
// # The code
//
//	api                 the contracts: deploy.wsdl and errors.json, embedded as they are
//	internal/service    the service on each system; start and removal
//	internal/ownership  who may look into its folder
//	internal/tunnel     where a tunnelled agent waits for its client
//	internal/agent      from the first port tried to the last rule closed
//	internal/deploy     HTTP, and the operations of the WSDL
//	internal/soap       envelopes to structs and back
//	internal/mtom       attachments, streamed
//	internal/identity   the key pair and the pin
//	internal/lease      the dead-man switch, and its record for other runs
//	internal/guard      the one who cleans up after an agent that was killed
//	internal/removal    the end of a Windows service and its folder
//	internal/atboot     what a Linux target removes at its next boot
//	internal/systemlog  the target's own log
//	internal/process    programs: trees, output by offset, time limits
//	internal/files      files: put, get, stat, remove, extract
//	internal/packages   dpkg, rpm, the Uninstall keys
//	internal/firewall   netsh; firewalld, ufw, nftables, iptables
//	internal/leftovers  what earlier runs left
//	internal/account    users of a Linux target, and their rights
//	internal/catalogue  errors as code and fields
//	internal/config     config and ready
//	internal/host       facts of the target
//
// # Limits
//
// Rules are made for the input only: an output chain that drops answers to an admitted connection is not changed, nor are
// chains at ingress or prerouting. On Linux without control groups (version 2) a grandchild that left its session and whose
// parent has ended survives a time-out. On Windows a policy that forbids local firewall rules makes them without effect, and
// work that a program hands to another service (as an MSI does) is not in its process tree.
package main
