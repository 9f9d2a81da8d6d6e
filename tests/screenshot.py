"""A PNG of a report, for the README: python tests/screenshot.py report.html out.png --width 1200 --dark"""
import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = '/usr/bin/chromium'
# no sandbox: containers run as root; the rest keeps the browser from calling home
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync']


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('report', type=Path)
    p.add_argument('out', type=Path)
    p.add_argument('--width', type=int, default=1200, help='px')
    p.add_argument('--height', type=int, help='px; default: the whole page')
    p.add_argument('--top', type=int, default=0, help='px left out at the top, with --height')
    p.add_argument('--scale', type=float, default=1, help='device pixels for one px')
    p.add_argument('--dark', action='store_true')
    a = p.parse_args()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport=dict(width=a.width, height=a.height or 900), device_scale_factor=a.scale,
                                color_scheme='dark' if a.dark else 'light')
        page.goto(a.report.resolve().as_uri())
        clip = dict(x=0, y=a.top, width=a.width, height=a.height) if a.height else None
        page.screenshot(path=a.out, full_page=True, clip=clip)
        browser.close()


if __name__ == '__main__': main()
