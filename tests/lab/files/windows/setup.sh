# Run once in the new root of the Windows target. Passwords and names are given to each target when it comes up.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
printf '127.0.0.1 localhost\n::1 localhost\n' > /etc/hosts
: > /etc/resolv.conf

# Samba's accounts need Unix accounts of the same name; useradd refuses the capital letter.
groupdel operator
uid=2000
for user in Administrator operator reader; do
    echo "$user:x:$uid:$uid::/nonexistent:/usr/sbin/nologin" >> /etc/passwd
    echo "$user:x:$uid:" >> /etc/group
    uid=$((uid + 1))
done

set -a
. /etc/sojourn-lab/environment
set +a
wineboot --init
# There is no display; programs that want a window get one that nobody sees.
wine reg add 'HKCU\Software\Wine\Drivers' /v Graphics /d null /f
wine reg add 'HKLM\Software\Microsoft\Windows\CurrentVersion\Policies\System' /v EnableLUA /t REG_DWORD /d 1 /f
# Without this a 64-bit process would get Wine's own empty stubs in place of the stand-ins of the same name.
stand_ins="netsh.exe shutdown.exe powershell.exe sc.exe"
for program in $stand_ins; do
    wine reg add 'HKCU\Software\Wine\DllOverrides' /v "$program" /d native /f
done
wineserver --wait
for folder in system32 syswow64; do
    if [ -d "/srv/windows/drive_c/windows/$folder" ]; then
        (cd /opt/sojourn-lab/bin && cp -f $stand_ins "/srv/windows/drive_c/windows/$folder/")
    fi
done

# The registry's own files: only administrators may look into the folder.
mkdir /srv/windows/drive_c/windows/system32/config
: > /srv/windows/drive_c/windows/system32/config/SYSTEM

systemctl disable nmbd.service samba-ad-dc.service winbind.service apt-daily.timer apt-daily-upgrade.timer \
    fstrim.timer dpkg-db-backup.timer e2scrub_all.timer || true
systemctl mask console-getty.service container-getty@.service getty.target nmbd.service samba-dcerpcd.service || true
systemctl enable smbd.service nftables.service sojourn-lab-windows.service
# Nothing to update at the first boot.
touch /etc/.updated /var/.updated
# The version that Wine tells.
python3 /opt/sojourn-lab/ntlm_version.py 10.0.19043
