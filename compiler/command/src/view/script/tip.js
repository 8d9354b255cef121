// What is told next to the pointer.
function tell(event, ...children) {
  const tip = byId('tip');
  tip.replaceChildren(...children.flat(3).filter(Boolean));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - width - 8))}px`;
  const fits = event.clientY + 18 + height <= window.innerHeight;
  tip.style.top = `${fits ? event.clientY + 18 : Math.max(4, event.clientY - height - 12)}px`;
}
const quiet = () => {
  byId('tip').hidden = true;
};
