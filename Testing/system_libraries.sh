# Installs what Qt and VTK need of the system where apt and the rights are there, else names it.
packages="libegl1 libgl1 libgl1-mesa-dri libxkbcommon0 libdbus-1-3 libfontconfig1 libglib2.0-0 fonts-dejavu-core"
command -v dpkg-query >/dev/null || exit 0
missing=""
for package in $packages; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ]; then
    apt-get update --quiet --quiet && apt-get install --yes --quiet --quiet --no-install-recommends $missing
else
    echo "The tests of the Slicer module need system libraries: sudo apt-get install$missing"
fi
