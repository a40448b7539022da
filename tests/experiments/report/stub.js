// The smallest document that page.js and maps.js ask for: three runs, two of which have a map.
const fs=require("fs");
class El{constructor(t){this.tagName=t;this.attrs={};this.kids=[];this.dataset={};this.hidden=false;this.className="";this.l={}}
 setAttribute(k,v){this.attrs[k]=String(v)} getAttribute(k){return this.attrs[k]??null} removeAttribute(k){delete this.attrs[k]}
 append(...k){this.kids.push(...k)} replaceChildren(...k){this.kids=k} addEventListener(n,f){this.l[n]=f}
 querySelector(s){return this.q[s]} get textContent(){return this.t??""} set textContent(v){this.t=v}}
const row=(id,name,v)=>{const r=new El("tr");r.dataset.id=id;const c=new El("td");c.t=name;const d=new El("td");d.t=v;d.dataset.v=v;r.cells=[c,d];r.t=name+v;return r};
const rows=[row("a","one","2"),row("b","two","1"),row("c","three","")];
const body=new El("tbody");body.rows=rows;body.append=(...k)=>{body.rows=k};
const h=["run","n"].map((n,i)=>{const e=new El("th");e.classList={contains:c=>i===1};const b=new El("button");e.q={button:b};return e});
const table=new El("table");table.tBodies=[body];table.tHead={rows:[{cells:h}]};
const det=new El("details");det.open=true;const grid=new El("div");const sc=new El("script");
sc.t=JSON.stringify({kinds:["q","k"],blocks:["0","1"],low:0,high:1,log:false,cell:16,runs:{a:"A/B.",b:"AAAA"}});
det.q={script:sc,".grid-of-maps":grid};
const ids={runs:table,words:Object.assign(new El("input"),{value:""}),count:new El("o"),tip:new El("div")};
global.SVGElement=class{};global.innerWidth=1000;
global.document={getElementById:i=>ids[i],querySelectorAll:s=>s==="details.maps"?[det]:[],createElementNS:(n,t)=>new El(t),createElement:t=>new El(t),addEventListener(){}} ;
(0,eval)(
  fs.readFileSync(process.argv[2] + "/maps.js", "utf8").replace("const maps", "globalThis.maps")
  + fs.readFileSync(process.argv[2] + "/page.js", "utf8"));
const names = () => grid.kids.map(map => map.kids[0].t);
const said = {start: names()};
h[1].q.button.l.click();
said.sorted = names();
ids.words.value = "one";
ids.words.l.input();
said.filtered = names();
said.count = ids.count.t;
const cells = grid.kids[0].kids[1].kids[0].kids.filter(each => each.tagName === "rect");
said.cells = cells.map(({attrs}) => [attrs.x, attrs.y, attrs.class, attrs["data-v"]]);
console.log(JSON.stringify(said));
