# Run once in the new root of the Linux target. Nothing here is secret or unique to one target:
# host keys, passwords and the machine id are made when a target comes up.
: > /etc/machine-id
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' > /etc/hosts
: > /etc/resolv.conf

groupdel operator  # Debian's own, of no member; the account's private group takes the name
for user in deployer operator visitor; do
    useradd --create-home --shell /bin/bash "$user"
done
printf 'deployer ALL=(ALL:ALL) ALL\noperator ALL=(ALL:ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/sojourn-lab
chmod 0440 /etc/sudoers.d/sojourn-lab

# Firewall services are there, and off until a lab chooses one.
for unit in nftables ufw firewalld; do
    systemctl disable "$unit.service"
done
systemctl enable ssh.service
ufw allow 22/tcp  # stored for when it is switched on

# What a container of minutes doesn't need, and what would change the target behind a test's back.
systemctl disable apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer || true
systemctl mask console-getty.service container-getty@.service getty.target systemd-update-utmp.service \
    systemd-networkd-wait-online.service
# Nothing to update at the first boot.
touch /etc/.updated /var/.updated
